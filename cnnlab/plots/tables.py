"""Confusion matrices and tables of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnlab.plots.style import FAILED, PASSED, RIGHT, UNDECIDED, WRONG, Array, rgb


def confusion(counts: Array, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix int (K, K), true classes by row."""
    size = min(0.55 * len(classes) + 1.6, 24.0)  # inches; hundreds of classes would take gigabytes
    figure = Figure(figsize=(size + 0.6, size + 0.4), layout="constrained")
    axes = figure.subplots()
    _matrix(axes, counts, classes)
    axes.set_title(title, fontsize=11)
    return figure


def _matrix(axes: Axes, counts: Array, classes: Sequence[str]) -> None:
    fontsize = 8
    axes.imshow(_cells(counts), interpolation="nearest")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = row == column and count > counts[row].sum() / 2
            text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": fontsize - (len(classes) > 4)}
            axes.text(column, row, f"{count}", color="white" if dark else "black", **text)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 4 else 0, fontsize=fontsize)
    axes.set_yticks(range(len(classes)), classes, fontsize=fontsize)
    axes.set_xlabel("predicted", fontsize=fontsize)
    axes.set_ylabel("true", fontsize=fontsize)


def _cells(counts: Array) -> Array:
    """Return RGB (K, K, 3): right answers from white to grey by their share of the row, wrong ones from pale to full
    orange by the logarithm of their share, so that a single mistake is visible."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    strength = np.where(right, shares, np.clip(1 + np.log10(np.maximum(shares, 1e-9)) / 4, 0.2, 1))
    strength = np.where(counts == 0, 0, strength)[..., None]
    hue = np.where(right[..., None], rgb(RIGHT), rgb(WRONG))
    return 1 - strength * (1 - hue)  # type: ignore[no-any-return]


def checks(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, bool | None]]]],
    columns: Sequence[str],
    judged: Sequence[str],
) -> Figure:
    """Draw tables {title: {row: {column: (value, passed)}}}: green where passed, red where failed, yellow where
    undecided in rows that are `judged`, white otherwise."""
    rows = max(len(panel) for panel in panels.values())
    size = (0.78 * len(columns) + 2.4, (0.34 * rows + 0.4) * len(panels) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    colours = {True: PASSED, False: FAILED, None: UNDECIDED}
    for axes, (title, panel) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        for (y, (row, cells)), (x, column) in product(enumerate(panel.items()), enumerate(columns)):
            if column in cells:
                value, passed = cells[column]
                colour = colours[passed] if row in judged else "white"
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(panel) - 0.5, -0.5))
        axes.set_yticks(range(len(panel)), list(panel), fontsize=8)
        axes.set_xticks([])
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    first = figure.axes[0]
    first.xaxis.tick_top()
    first.set_xticks(range(len(columns)), [fill(name, 14) for name in columns], rotation=40, ha="left", fontsize=8)
    return figure
