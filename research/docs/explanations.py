"""Fill docs/explanations.md and docs/leaderboard.md from what `python -m research.attribution` wrote.

python research/docs/explanations.py <folder> [<folder of breadth=slow>]  # keep docs/explanations/*.csv
python research/docs/explanations.py                                      # fill the pages from these files again
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from statistics import mean

from cnnlab.interpret.method_names import method_title
from research.attribution import page
from research.attribution.grades import BY_HAND, Grades
from research.attribution.table import Cell, Table

DOCS = Path(__file__).parents[2] / "docs"
KEPT = DOCS / "explanations"
MARKED = ("DeepLIFT", "LRP")  # their grades rest on rules that are wrong for these networks
Rows = list[list[str]]


def read(folder: Path) -> tuple[Table, Table]:
    """Return the grades of trained networks, and of the hand-built one."""
    every = [Grades.load(path) for path in sorted((folder / "grades").glob("*.npz"))]
    # Networks with five seeds on plain lines first, as the pages are about them.
    every.sort(key=lambda one: one.facts["scene"] != "plain")
    by_hand = [one for one in every if one.facts["scene"] == BY_HAND]
    return Table([one for one in every if one not in by_hand]), Table(by_hand, "own")


def tables(folder: Path, slow: Path | None) -> dict[str, Rows]:
    """{name: rows of cells, the header first}."""
    table, by_hand = read(folder)
    found = {
        "networks": [row[:5] for row in page.networks(table)],
        "ranks": page.ranks(table, "plain"),
        "costs": page.costs(table, "plain"),
        "cam_layer": by_cam_layer(table),
        "wrong": page.wrong_answers(table),
        "by_hand": page.known_evidence(by_hand, table, "plain"),
        "variance": [["source", "share of the variance"], *_percents(table.variance("plain"))],
        **{scene: page.ranks(table, scene) for scene, _ in table.groups if scene != "plain"},
    }
    if slow is not None:
        found["slow"] = page.ranks(read(slow)[0], "plain")
    return found


def by_cam_layer(table: Table) -> Rows:
    """The rank accuracy of the CAM family on each network of plain lines, the mean over its heads: at the last
    convolution, where version 0.9 looked (`cams_at_convolution.csv`, of its `scores.csv`), and at its ReLU."""
    before: dict[tuple[str, str], list[float]] = {}
    now: dict[tuple[str, str], list[float]] = {}
    with (KEPT / "cams_at_convolution.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            place, cell = (row["network"], row["method"]), Cell("plain", row["network"], row["head"], row["method"])
            before.setdefault(place, []).append(float(row["rank"]))
            now.setdefault(place, []).append(table.results[cell].mean.mean)
    networks, methods = (list(dict.fromkeys(names)) for names in zip(*before, strict=True))
    rows = [["convolution → ReLU", *networks]]
    for method in methods:
        both = [f"{mean(before[name, method]):.2f} → {mean(now[name, method]):.2f}" for name in networks]
        rows.append([method_title(method), *both])
    return rows


def _percents(shares: dict[str, float]) -> Rows:
    return [[name, f"{100 * share:.1f} %"] for name, share in shares.items()]


def keep(folder: Path, slow: Path | None) -> None:
    """Write the tables as CSV files, the grades of every network, and the pictures."""
    KEPT.mkdir(exist_ok=True)
    for name, rows in tables(folder, slow).items():
        with (KEPT / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    table, by_hand = read(folder)
    kept = [
        row
        for one in (table, by_hand)
        for row in one.rows()
        if (row["truth"], row["metric"]) in (("counterfactual", "rank"), ("own", "auc"), ("own", "auc within"))
    ]
    with (KEPT / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def filled(text: str) -> str:
    """`text` with what stands between <!-- table: name --> and <!-- end --> made anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{_written(found[2])}\n\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def _written(name: str) -> str:
    with (KEPT / f"{name}.csv").open(encoding="utf-8") as lines:
        header, *rows = list(csv.reader(lines))
    rows = [[f"{row[0]} †" if row[0].startswith(MARKED) else row[0], *row[1:]] for row in rows]
    lines_ = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines_)


if __name__ == "__main__":
    if sys.argv[1:]:
        keep(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
    for name in ("explanations.md", "leaderboard.md"):
        document = DOCS / name
        document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
