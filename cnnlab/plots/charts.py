"""Charts: learning curves, scores with intervals, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from cnnlab.plots.style import BLUE, SKY, Array, TiledFigure, line_styles
from cnnlab.utils.console import percent

PLAIN = "{x:g}"  # Matplotlib's own labels of a logarithmic axis are formulas, which are not read (see `style`)


def curves(
    losses: Mapping[str, Mapping[str, Sequence[float]]],
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    rates: Sequence[float],
) -> Figure:
    """Draw learning curves {name: {"train" or "val": [value per epoch]}} and the learning rate of each epoch.

    The accuracy axis is logarithmic in the errors, so that 99.9 % and 99.99 % are apart.
    """
    figure = TiledFigure(figsize=(13, 4.4), layout="constrained")
    loss_axes, accuracy_axes, rate_axes = figure.subplots(1, 3, width_ratios=(5, 5, 2.4))
    styles = dict(zip(dict.fromkeys([*losses, *accuracies]), line_styles(), strict=False))
    for axes, lines in ((loss_axes, losses), (accuracy_axes, accuracies)):
        for name, stages in lines.items():
            colour, marker = styles[name]
            for stage, style in (("train", "--"), ("val", "-")):
                if stage in stages:
                    values = np.asarray(stages[stage])
                    y = _digits(values) if axes is accuracy_axes else values
                    label = {"train": f"{name}, training", "val": f"{name}, validation"}[stage]
                    epochs = range(1, len(values) + 1)
                    axes.plot(epochs, y, style, color=colour, marker=marker, markersize=3, label=label)
        _epoch_axis(axes)
    rate_axes.plot(range(1, len(rates) + 1), rates, color="black", marker="o", markersize=3)
    rate_axes.set(title="Learning rate", yscale="log")
    rate_axes.yaxis.set_major_formatter(PLAIN)
    rate_axes.yaxis.set_minor_formatter(NullFormatter())
    _epoch_axis(rate_axes)
    positive = all(value > 0 for stages in losses.values() for values in stages.values() for value in values)
    loss_axes.set(ylabel="loss (nats)", yscale="log" if positive else "linear", title="Loss")
    loss_axes.yaxis.set_major_formatter(PLAIN)
    loss_axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # if there is room
    _digit_axis(accuracy_axes)
    accuracy_axes.set(ylabel="accuracy (%), by its errors", title="Accuracy")
    by_label = {str(line.get_label()): line for axes in (accuracy_axes, loss_axes) for line in axes.get_lines()}
    figure.legend(by_label.values(), by_label.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def comparison(groups: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw accuracy by epoch of groups of runs, {name: [[value per epoch] per run]}: the mean as a line, lowest to
    highest as a band."""
    figure = TiledFigure(figsize=(10.5, max(4.4, 0.24 * len(groups) + 1.2)), layout="constrained")
    axes = figure.subplots()
    for (colour, marker), (name, runs) in zip(line_styles(), groups.items(), strict=False):
        epochs = min(len(run) for run in runs)
        values = np.array([run[:epochs] for run in runs])
        x = np.arange(1, epochs + 1)
        label = fill(name, 42)
        axes.plot(x, _digits(values.mean(axis=0)), color=colour, marker=marker, markersize=3, label=label)
        axes.fill_between(
            x, _digits(values.min(axis=0)), _digits(values.max(axis=0)), color=colour, alpha=0.15, linewidth=0
        )
    _epoch_axis(axes)
    _digit_axis(axes)
    highest = max((value for runs in groups.values() for run in runs for value in run), default=0.0)
    top = float(_digits(np.array(highest))) + 0.25
    lowest = min(axes.get_ylim()[0], top - 1.5)  # flat curves, too, lie between two ticks
    axes.set_ylim(bottom=max(-0.05, lowest), top=top)
    axes.set_ylabel("validation, every head right (%)")
    if groups:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def by_epoch(heads: Mapping[str, Sequence[float]], ylabel: str, logarithmic: bool = False) -> Figure:
    """Draw a number by epoch, {head: [value per epoch]}, in [0, 1] unless `logarithmic`."""
    figure = TiledFigure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for (colour, marker), (name, values) in zip(line_styles(), heads.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=3, label=name)
    _epoch_axis(axes)
    axes.set_ylabel(ylabel)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    low, high = (axes.dataLim.x0, axes.dataLim.x1) if axes.has_data() else (1, 1)
    axes.set_xlim(low - 0.5, high + 0.5)  # also for one epoch
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


_MAX_DIGITS = 5.0  # all right is drawn where 99.999 % stands


def _digits(accuracy: Array) -> Array:
    """Return -log10 of the error rate: 90 % is 1, 99 % is 2."""
    errors: Array = np.maximum(1 - np.asarray(accuracy, dtype=np.float64), 10**-_MAX_DIGITS)
    return -np.log10(errors)


def _digit_axis(axes: Axes) -> None:
    marks = {0.0: "0", 1 - 0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99", 1.0: "100"}
    axes.set_yticks([float(_digits(np.array(mark))) for mark in marks], marks.values())


def f_scores(scores: Mapping[str, Array], classes: Mapping[str, Sequence[str]]) -> Figure:
    """Draw the F1 score of every class, {head: float (classes,)} in [0, 1], a panel per head."""
    widths = [min(max(3.5, len(values)), 40) for values in scores.values()]
    figure = TiledFigure(figsize=(max(5.0, 0.42 * sum(widths) + 2), 4.2), layout="constrained")
    lowest = min(float(np.nanmin(values)) for values in scores.values())
    bottom = max(step for step in (0.0, 0.5, 0.9, 0.95, 0.99) if step <= max(lowest - 0.004, 0.0))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        positions = np.arange(len(values))
        axes.vlines(positions, bottom, values, color=SKY, linewidth=1)
        axes.plot(positions, values, "o", color=BLUE, markersize=4)
        step = 1 + len(values) // 40  # 96 names would not be read
        axes.set_xticks(positions[::step], classes[name][::step], rotation=90 if len(values) > 2 else 0, fontsize=8)
        axes.set_xlim(-0.7, len(values) - 0.3)
        axes.set_title(f"{name}\nmean {percent(float(np.nanmean(values)))}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("F1 score" + (f" (the axis begins at {bottom:g})" if bottom else ""))
    panels[0].set_ylim(bottom, 1 + 0.08 * (1 - bottom))
    panels[0].ticklabel_format(axis="y", useOffset=False)
    return figure
