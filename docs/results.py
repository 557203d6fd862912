"""Fills the tables of docs/results.md and of the README: the numbers are read from runs, not typed.

python docs/results.py <folder of docs/results.sh>   compares the runs and keeps docs/results/*.csv and *.png
python docs/results.py                               fills the tables from these CSV files again
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cnnlab.comparison_report import compare, epochs_to_goal
from cnnlab.html import percent

DOCS = Path(__file__).parent
Row = dict[str, str]

# Section: the runs it compares, and the test images if not all.
SECTIONS: dict[str, tuple[list[str], dict[str, str] | None]] = {
    "mnist": (["mnist", "mnist_5x5", "mnist_flat", "mnist_dropout", "mnist_deep", "mnist_best"], None),
    "lines": (["lines", "lines_deep"], None),
    "multihead": (["multihead_v1", "multihead_v2", "multihead_v3", "multihead_figure5", "multihead"], None),
    "weighting": (["sweep_weighting"], None),
    "green": (["add_colour_multihead", "add_colour_multihead_hue_blind"], {"colour": "green"}),
    "red": (["add_colour_multihead", "add_colour_multihead_hue_blind"], {"colour": "red"}),
    "holdout": (["sweep_holdout"], None),
    "precision": (["mnist", "mnist_float32", "multihead", "multihead_float32"], None),
    **{name: ([f"sweep_{name}"], None) for name in ("filters", "pooling", "depth", "decay", "regularisation")},
}

# What the reports state, by experiment.
THEIRS = {
    "mnist": "98.64",
    "mnist_dropout": "similar",
    "mnist_deep": "99.29",
    "lines": "98.96",
    "lines_deep": "99.94",
    "multihead_v1": "83.1 (mean of heads)",
    "multihead_v2": "97.7 (mean of heads)",
    "multihead_v3": "99.7 (mean of heads)",
    "multihead_figure5": "100",
}
HEADS = ["length", "width", "angle", "colour"]
SCORES = ["accuracy", "f1", "precision", "recall", "worst class"]
RUN = ["n", "epochs", "seconds", "parameters"]
VARIED = ["validation", "accuracy", *RUN]


@dataclass(frozen=True)
class Table:
    """The sections it reads, its settings, its other columns; only some rows, where they are named."""

    sections: list[str]
    settings: list[str]
    columns: list[str]
    only: list[str] | None = None


SHORT = ["mnist", "mnist_deep", "mnist_best", "lines", "lines_deep", "multihead_figure5", "multihead"]
TABLES = {
    "readme": Table(["mnist", "lines", "multihead"], ["experiment"], ["theirs", "accuracy", *RUN], SHORT),
    "mnist": Table(["mnist"], ["experiment"], ["theirs", *SCORES, *RUN]),
    "lines": Table(["lines"], ["experiment"], ["theirs", *SCORES, *RUN]),
    "multihead": Table(["multihead"], ["experiment"], ["theirs", "mean of heads", "all heads right", *HEADS, *RUN]),
    "weighting": Table(
        ["weighting"], ["weighting"], ["epochs to 99.9 %", "validation", "all heads right", *HEADS, "n"]
    ),
    "green": Table(["green"], ["init_from"], ["all heads right", *HEADS, "n"]),
    "red": Table(["red"], ["init_from"], ["all heads right", *HEADS, "n"]),
    "holdout": Table(["holdout"], ["net"], ["validation", "all heads right", *HEADS, "n", "parameters"]),
    "precision": Table(["precision"], ["experiment", "trainer.precision"], VARIED),
    "filters": Table(["filters"], ["net.kernel_size", "net.filters"], VARIED),
    "pooling": Table(["pooling"], ["net.downsample"], VARIED),
    "depth": Table(["depth"], ["net.filters"], VARIED),
    "decay": Table(["decay"], ["lr_scheduler"], VARIED),
    "regularisation": Table(["regularisation"], ["net.dropout", "l2"], VARIED),
}
NAMES = {"accuracy": "joint", "all heads right": "joint", "mean of heads": "heads_mean"}


def cell(column: str, row: Row) -> str:
    if column == "theirs":
        return THEIRS.get(row["experiment"], "–")
    if column == "n":
        return row["finished"]
    if column == "epochs to 99.9 %":
        runs = int(row["reached_goal"]), int(row["finished"])
        return epochs_to_goal(float(row["epochs_to_goal"]), *runs) if runs[0] else "–"
    if column in ("seconds", "epochs", "parameters"):
        return f"{float(row[column]):,.0f}"
    if column == "worst class":
        return f"{row['worst_class']} ({percent(float(row['worst_recall']))})"
    key = NAMES.get(column, column)
    share = percent(float(row[key])).removesuffix(" %")
    return f"{share} ± {100 * float(row[f'{key}_std']):.2f}" if row.get(f"{key}_std") else share


def table(name: str) -> str:
    shape = TABLES[name]
    rows = [row for section in shape.sections for row in rows_of(section)]
    if shape.only:
        rows = [row for wanted in shape.only for row in rows if row["experiment"] == wanted]
    if not rows:
        return "Not run yet."
    lines = [[*shape.settings, *shape.columns], ["---"] * len(shape.settings) + ["---:"] * len(shape.columns)]
    lines += [
        [*(f"`{row[key]}`" for key in shape.settings), *(cell(column, row) for column in shape.columns)] for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows_of(section: str) -> list[Row]:
    """The groups of a section with at least one finished run; none where it was not run yet."""
    if not (DOCS / "results" / f"{section}.csv").exists():
        return []
    with (DOCS / "results" / f"{section}.csv").open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if int(row["finished"])]


def filled(text: str) -> str:
    """`text` with what stands between <!-- table: name --> and <!-- end --> made anew."""
    pattern = r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[3]}", text, flags=re.DOTALL)


def collect(root: Path) -> None:
    """Compare the runs below `root`, section by section, and keep each table and its picture."""
    for section, (names, where) in SECTIONS.items():
        folders = [root / name for name in names if (root / name).is_dir()]
        if not folders:
            continue
        with tempfile.TemporaryDirectory() as out:
            compare(folders, Path(out), where)
            shutil.copy(Path(out) / "compare.csv", DOCS / "results" / f"{section}.csv")
            if f"results/{section}.png" in (DOCS / "results.md").read_text(encoding="utf-8"):
                shutil.copy(Path(out) / "compare.png", DOCS / "results" / f"{section}.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    for page in (DOCS / "results.md", DOCS.parent / "README.md"):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
