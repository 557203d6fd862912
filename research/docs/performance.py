"""Fills the tables of docs/performance.md from the records that the benchmarks wrote, and draws the curves of scale:

python -m research.performance.training --full --out docs/performance/training.json      (and so on)
python research/docs/performance.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from matplotlib.figure import Figure

from cnnlab.plots.style import BLUE, save
from research.performance.side_by_side import report

DOCS = Path(__file__).parents[2] / "docs"


def _tables(name: str) -> str:
    file = DOCS / "performance" / f"{name}.json"
    return report(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else "Not measured yet."


def filled(text: str) -> str:
    """`text` with what stands between <!-- benchmark: name --> and <!-- end --> made anew."""
    pattern = r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{_tables(m[2])}\n\n{m[3]}", text, flags=re.DOTALL)


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def scale_curves(figures: list[dict[str, str]]) -> Figure:
    """Images a second, above, and peak memory, below, against each of what grows."""
    grown = list(dict.fromkeys(row["what grows"] for row in figures))
    measured = ("images/s (median)", "peak memory, GB")
    figure = Figure(figsize=(3 * len(grown), 5), layout="constrained")
    for row, axes_row in zip(measured, figure.subplots(2, len(grown), sharey="row", squeeze=False), strict=True):
        for what, axes in zip(grown, axes_row, strict=True):
            points = [point for point in figures if point["what grows"] == what]
            axes.plot([point["to"] for point in points], [_number(point[row]) for point in points], "o-", color=BLUE)
            axes.set(xlabel=what, ylim=(0, 1.1 * max(_number(point[row]) for point in figures)))
            axes.tick_params(axis="x", rotation=45 if len(points) > 2 else 0)
            axes.grid(alpha=0.3)
        axes_row[0].set(ylabel=row)
    return figure


if __name__ == "__main__":
    scale = DOCS / "performance" / "scale.json"
    if scale.exists():
        save(scale_curves(json.loads(scale.read_text(encoding="utf-8"))["figures"]), scale.with_suffix(".png"))
    page = DOCS / "performance.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
