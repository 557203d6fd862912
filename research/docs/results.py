"""Fills the tables of docs/results.md and of the README: the numbers are read from runs, not typed.

python research/docs/results.py <folder of docs/results.sh>   compares the runs and keeps docs/results/*.csv and *.png
python research/docs/results.py                               fills the tables from these CSV files again
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from cnnlab.reporting.comparison import compare, epochs_to_goal
from cnnlab.utils.console import percent

DOCS = Path(__file__).parents[2] / "docs"
Row = dict[str, str]

# Section: the runs it compares, and the test images if not all.
SECTIONS: dict[str, tuple[list[str], dict[str, str] | None]] = {
    "mnist": (["mnist", "mnist_5x5", "mnist_flat", "mnist_dropout", "mnist_deep", "mnist_best"], None),
    "lines": (["lines", "lines_deep"], None),
    "multihead": (["multihead_v1", "multihead_v2", "multihead_v3", "multihead_figure5", "multihead_report_b"], None),
    "base": (["base/multihead", "base/multihead_report_b"], None),
    "seeds": (["multihead_seeds"], None),
    "theirs": (["multihead_v1_theirs", "multihead_v2_theirs", "multihead_v3_theirs", "multihead_figure5_theirs"], None),
    "hard": (["multihead_v1_hard", "multihead_v2_hard", "multihead_v3_hard", "multihead_figure5_hard"], None),
    "region": (["multihead_report_b_region", "multihead_mixed_region", "multihead_anywhere_region"], None),
    "weighting": (["sweep_weighting"], None),
    "green": (["add_colour_multihead_report_b", "add_colour_multihead_hue_blind"], {"colour": "green"}),
    "red": (["add_colour_multihead_report_b", "add_colour_multihead_hue_blind"], {"colour": "red"}),
    "holdout": (["sweep_holdout"], None),
    "precision": (["mnist", "mnist_float32", "multihead_report_b", "multihead_report_b_float32"], None),
    **{name: ([f"sweep_{name}"], None) for name in ("filters", "pooling", "depth", "decay", "regularisation")},
}

# The reports' numbers, by experiment.
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
# The networks that are shown lines which others drew, by their folders.
READERS = {
    "multihead_report_b": "`multihead_report_b`",
    "multihead_mixed": "… mixed styles",
    "multihead_jitter": "… and jitter",
    "anywhere_plain": "means over places",
    "anywhere_mixed": "… mixed styles",
    "multihead_anywhere": "… and jitter: `multihead_anywhere`",
    "anywhere_light": "… and light",
}
# Networks for Grad-CAM at two layers, by their folders.
GRADED = {
    "multihead_seeds": "`multihead`",
    "figure5_briefly": "Report B's Figure 5, briefly",
    "resnet": "`net=resnet`",
    "multihead_anywhere": "`multihead_anywhere`",
    "multihead_07": "the recipe of 0.7",
    "multihead_report_b": "`multihead_report_b`",
}
PLACES = {"last_convolution": "the convolution", "null": "the ReLU after it"}
HEADS = ["length", "width", "angle", "colour"]
METRICS = ["rank", "auc"]
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
    "readme": Table(["mnist", "lines", "multihead", "base"], ["experiment"], ["theirs", "accuracy", *RUN], SHORT),
    "mnist": Table(["mnist"], ["experiment"], ["theirs", *SCORES, *RUN]),
    "lines": Table(["lines"], ["experiment"], ["theirs", *SCORES, *RUN]),
    "multihead": Table(["multihead"], ["experiment"], ["theirs", "mean of heads", "all heads right", *HEADS, *RUN]),
    "base": Table(["base"], ["experiment"], ["validation", "all heads right", "lowest", *HEADS, *RUN]),
    "seeds": Table(["seeds"], ["experiment"], ["validation", "all heads right", "lowest", *HEADS, "n"]),
    "weighting": Table(
        ["weighting"], ["weighting"], ["epochs to 99.9 %", "validation", "all heads right", *HEADS, "n"]
    ),
    "green": Table(["green"], ["init_from"], ["all heads right", *HEADS, "n"]),
    "red": Table(["red"], ["init_from"], ["all heads right", *HEADS, "n"]),
    "holdout": Table(["holdout"], ["net"], ["validation", "all heads right", *HEADS, "n", "parameters"]),
    "region": Table(
        ["region"], ["experiment", "data.style"], ["validation", "all heads right", *HEADS, "n", "parameters"]
    ),
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
    if column == "lowest":
        return percent(float(row["joint_min"])).removesuffix(" %")
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
    if name in SPECIAL:
        return markdown(SPECIAL[name]())
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
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions() -> list[list[str]]:
    """Report by report: theirs, ours on data made as theirs, on as hard pixels without leakage, and on ours."""
    sections = ("theirs", "hard", "multihead")
    ours = {section: {row["experiment"]: row for row in rows_of(section)} for section in sections}
    heads = ["experiment", "theirs", "ours, their data", "hard pixels, no leakage", "anti-aliased, no leakage", "n"]
    lines = [heads, ["---", *["---:"] * 5]]
    for name in ours["theirs"]:
        column = "mean of heads" if "mean of heads" in THEIRS[name] else "all heads right"
        of_all = [ours[section].get(name) for section in sections]
        cells = ["–" if of_one is None else cell(column, of_one) for of_one in of_all]
        counts = ["0" if of_one is None else of_one["finished"] for of_one in of_all]
        runs = counts[0] if len(set(counts)) == 1 else ", ".join(counts)
        lines.append([f"`{name}`, {column}", THEIRS[name].partition(" ")[0], *cells, runs])
    return lines


def renderers() -> list[list[str]]:
    """Variation by variation: how many lines each network reads right, and the reader without learning."""
    with (DOCS / "results" / "renderers.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in READERS if any(row["network"] == name for row in rows)]
    found = [["lines", *(READERS[name] for name in names), "moments"], ["---", *["---:"] * (len(names) + 1)]]
    group = ""
    for lines_name in dict.fromkeys(row["lines"] for row in rows):
        of_lines = [row for row in rows if row["lines"] == lines_name]
        if of_lines[0]["group"] != group:
            group = of_lines[0]["group"]
            found.append([f"**{group}**", *[""] * (len(names) + 1)])
        cells = []
        for name in names:
            shares = [100 * float(row["joint"]) for row in of_lines if row["network"] == name]
            cells.append(f"{mean(shares):.1f} ± {stdev(shares):.1f}" if len(shares) > 1 else f"{shares[0]:.1f}")
        found.append([lines_name, *cells, f"{100 * float(of_lines[0]['moments']):.1f}"])
    return found


def edges() -> list[list[str]]:
    """Mistakes a million of the branched network by its order of layers and its epochs."""
    with (DOCS / "results" / "edges.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if not row["change"] and row["muon_lr"] == "0.1"]
    epochs = sorted({row["epochs"] for row in rows})
    found = [["after a convolution", "rate of Adam", *(f"{count} epochs" for count in epochs)]]
    found.append(["---", *["---:"] * (len(epochs) + 1)])
    for kind in dict.fromkeys((row["order"], row["adam_lr"]) for row in rows):
        wrong = {row["epochs"]: row["wrong_per_million"] for row in rows if (row["order"], row["adam_lr"]) == kind}
        found.append([*kind, *(wrong.get(count, "–") for count in epochs)])
    return found


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def grad_cam_layer() -> list[list[str]]:
    """Network by network, rank accuracy and AUC of Grad-CAM at the last convolution and at the ReLU after it."""
    with (DOCS / "results" / "grad_cam_layer.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found = [["network, and where Grad-CAM looks", *HEADS], ["---", *["---:"] * len(HEADS)]]
    for network, title in GRADED.items():
        for layer, place in PLACES.items():
            own = [row for row in rows if (row["network"], row["layer"]) == (network, layer)]
            cells = [
                ", ".join(_spread([float(row[metric]) for row in own if row["head"] == head]) for metric in METRICS)
                for head in HEADS
            ]
            found.append([f"{title}, {place}", *cells])
    return found


SPECIAL = {"edges": edges, "grad_cam_layer": grad_cam_layer, "conditions": conditions, "renderers": renderers}


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


def write_rows(name: str, rows: list[Row]) -> None:
    """Rows as `results/<name>.csv`; without any the file is unchanged."""
    if rows:
        with (DOCS / "results" / f"{name}.csv").open("w", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


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


def collect_turns(root: Path) -> None:
    """Keep the training seconds of the runs of "base", which took turns, and their ratio."""
    names = ("multihead_report_b", "multihead")
    seeds = sorted(path.parent.name for path in (root / "base" / names[0]).glob("*/summary.json"))
    lines = [",".join(("turn", *names, "ratio"))]
    for seed in seeds:
        files = (root / "base" / name / seed / "summary.json" for name in names)
        before, now = (json.loads(file.read_text(encoding="utf-8"))["train_seconds"] for file in files)
        lines.append(f"{seed},{before},{now},{now / before:.3f}")
    if seeds:
        (DOCS / "results" / "turns.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def collect_readers(root: Path) -> None:
    """Keep how the networks below `root` read the lines of the bench, a seed and a variation a row."""
    rows: list[Row] = []
    for name in READERS:
        for file in sorted((root / name).glob("*/robustness/1/robustness.csv")):
            seed = file.parts[-4]
            with file.open(encoding="utf-8") as lines:
                rows += [{"network": name, "seed": seed, **row} for row in csv.DictReader(lines)]
    for name in ("multihead_report_b", "multihead_anywhere"):
        picture = root / name / "0" / "robustness" / "1" / "robustness.png"
        if picture.is_file():
            shutil.copy(picture, DOCS / "results" / f"renderers_{name}.png")
    write_rows("renderers", rows)


def collect_grad_cam(root: Path) -> None:
    """Keep Grad-CAM's scores at two layers on 200 test images: a network, seed, layer and head a row."""
    from cnnlab.api import load
    from cnnlab.data.datamodule import sample_indices
    from cnnlab.interpret import metrics

    rows: list[Row] = []
    for network in GRADED:
        for folder in sorted((root / network).glob("[0-9]*")):
            run = load(folder)
            indices = sample_indices(len(run.test_split), 200)
            images = run.test_split.inputs(indices)
            for layer in PLACES:
                for head in run.heads:
                    masks = run.test_split.truths(indices, head)["counterfactual"]
                    target = None if layer == "null" else layer
                    maps = run.attribute(images, head.name, "grad_cam", target_layer=target).maps
                    scores = {name: str(metrics.METRICS[name](maps, masks).nanmean().item()) for name in METRICS}
                    rows.append({"network": network, "seed": folder.name, "layer": layer, "head": head.name, **scores})
    write_rows("grad_cam_layer", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
        collect_readers(Path(sys.argv[1]))
        collect_turns(Path(sys.argv[1]))
        collect_grad_cam(Path(sys.argv[1]))
    for page in (DOCS / "results.md", DOCS.parent / "README.md"):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
