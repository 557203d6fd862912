"""The figure of the renderers: two readers of the same images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from cnnlab.plots.style import BLUE, GREEN, Array


def readings(groups: Mapping[str, Mapping[str, tuple[Array, float, float]]], names: tuple[str, str]) -> Figure:
    """Shares in [0, 1] of two readers of the same images, {group: {row: (examples uint8 (N, 3, H, W), first, second)}}:
    a row its examples and both shares; `names` are the readers'."""
    rows = [(group, name, *row) for group, lines in groups.items() for name, row in lines.items()]
    count = len(rows[0][2])
    height = 0.36 * (len(rows) + len(groups)) + 1.1
    figure = Figure(figsize=(10.5, height), layout="constrained")
    pictures, axes = figure.subplots(1, 2, width_ratios=(count, 11))
    place, ticks = 0.0, {}
    for number, (group, name, examples, first, second) in enumerate(rows):
        if number == 0 or group != rows[number - 1][0]:
            axes.text(0, place, group, fontsize=9, fontweight="bold", va="center")
            place += 1
        strip = np.concatenate([np.pad(one, ((0, 0), (1, 1), (1, 1)), constant_values=90) for one in examples], axis=2)
        pictures.imshow(
            strip.transpose(1, 2, 0), extent=(0, count, place + 0.47, place - 0.47), interpolation="nearest"
        )
        axes.plot([first, second], [place, place], color="#bbbbbb", linewidth=1.5, zorder=1)
        axes.plot(second, place, "D", color="white", markeredgecolor=GREEN, markersize=6, zorder=2)
        axes.plot(first, place, "o", color=BLUE, markersize=5, zorder=3)
        ticks[place] = name
        place += 1
    pictures.set(xlim=(0, count), ylim=(place - 0.4, -0.6), aspect="auto")
    pictures.set_axis_off()
    axes.set_yticks(list(ticks), ticks.values(), fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(place - 0.4, -0.6), xlabel="lines read right, every head (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.grid(alpha=0.3)
    legend = [Line2D([], [], linestyle="", marker="o", color=BLUE, markersize=5),
              Line2D([], [], linestyle="", marker="D", color="white", markeredgecolor=GREEN, markersize=6)]  # fmt: skip
    figure.legend(legend, names, loc="outside upper center", ncols=2, frameon=False)
    return figure
