"""The figure of the benchmark: how far each method is ahead of an edge map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnnlab.plots.style import Array


def leads(
    rows: Sequence[str], groups: Mapping[str, Sequence[str]], values: Array, texts: Sequence[Sequence[str]]
) -> Figure:
    """By how much each row is ahead of something, float (rows, columns): violet is behind, orange ahead, with a text in
    each cell. The columns are the groups, from left to right."""
    columns = [name for names in groups.values() for name in names]
    figure = Figure(figsize=(0.62 * len(columns) + 3.4, 0.27 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="PuOr_r", vmin=-0.8, vmax=0.8, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = abs(value) > 0.55
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        axes.text(column, row, texts[row][column], fontsize=7, **style)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=45, ha="left")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    place = 0
    for name, names in groups.items():
        axes.text(place + (len(names) - 1) / 2, len(rows) - 0.3, name, ha="center", va="top", fontsize=8)
        place += len(names)
        if place < len(columns):
            axes.axvline(place - 0.5, color="white", linewidth=4)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("ahead of the edge map, rank accuracy", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
