"""Fills the tables of docs/explanations.md: the grades are read from what `python -m cnnlab.score` wrote.

python docs/explanations.py <folder of branched> <of figure5> <of v3>   keeps docs/explanations/*.csv of these gradings
python docs/explanations.py                                             fills the tables from these CSV files again
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

from cnnlab.io import to_csv

DOCS = Path(__file__).parent
NETWORKS = ("branched", "figure5", "v3")
# What a table is of: the truth and the metric.
TABLES = {
    "rank": ("counterfactual", "rank"),
    "auc": ("counterfactual", "auc"),
    "random": ("randomised weights", "rank correlation"),
    "contrast": ("head contrast", "auc"),
}
NAMES = {"grad_cam": "Grad-CAM", "guided_grad_cam": "guided Grad-CAM"}
BASELINES = ("edges (Sobel)", "chance", "upper bound of the layer")


def collect(network: str, folder: Path) -> None:
    """Keep the grades of all predictions."""
    with (folder / "scores.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["predictions"] == "all"]
    kept = DOCS / "explanations" / f"{network}.csv"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(to_csv(list(rows)), encoding="utf-8")


def table(network: str, name: str) -> str:
    """A row a method, a column a head (or a pair of heads): the mean with its 95 % interval; the best of the methods
    is bold."""
    with (DOCS / "explanations" / f"{network}.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if (row["truth"], row["metric"]) == TABLES[name]]
    found = {(row["method"], row["head"]): row for row in rows}
    heads = list(dict.fromkeys(row["head"] for row in rows))
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method not in BASELINES]
    methods = [method for method in methods if method != "random map"]
    best = {head: max(methods, key=lambda method: float(found[method, head]["mean"])) for head in heads}
    lines_ = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method in [*methods, *(baseline for baseline in BASELINES if (baseline, heads[0]) in found)]:
        words = NAMES.get(method, method.replace("_", " "))
        cells = []
        for head in heads:
            row = found[method, head]
            mean = f"{float(row['mean']):.2f}"
            bold = name in ("rank", "auc") and best[head] == method
            cells.append(f"{f'**{mean}**' if bold else mean} [{float(row['low']):.2f}, {float(row['high']):.2f}]")
        lines_.append(f"| {f'*{words}*' if method in BASELINES else words} | " + " | ".join(cells) + " |")
    return "\n".join(lines_)


def filled(text: str) -> str:
    """`text` with what stands between <!-- grades: network name --> and <!-- end --> made anew."""
    pattern = r"(<!-- grades: (\w+) (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{table(m[2], m[3])}\n\n{m[4]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    for name, place in zip(NETWORKS, sys.argv[1:], strict=False):
        collect(name, Path(place))
    page = DOCS / "explanations.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
