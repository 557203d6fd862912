"""Arrays to pictures: the only file that imports matplotlib. Colour-blind safe (Okabe and Ito 2008)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, YELLOW, SKY, PINK, RUST = (
    "#0072B2", "#E69F00", "#009E73", "#F0E442", "#56B4E9", "#CC79A7", "#D55E00",
)  # fmt: skip
CYCLE = (BLUE, RUST, GREEN, PINK, ORANGE, SKY)
DPI = 110

__all__ = ["Figure", "confusion", "curves", "f_scores", "grouped_f_scores", "images", "save"]

Array = NDArray[Any]
Part = tuple[str, Sequence[str]]  # a name and its classes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, facecolor="white")


def images(pictures: Array, captions: Sequence[str], title: str, marked: Sequence[bool] = ()) -> Figure:
    """A grid of pictures uint8 (N, C, H, W), C 1 or 3, with a caption each; `marked` captions stand out.

    One axes in inches for all: a grid of axes takes a second to lay out.
    """
    count, _, height, width = pictures.shape
    columns = min(6, count)
    lines = max(caption.count("\n") + 1 for caption in captions)
    cell_width, picture_width = 1.9, 1.5
    picture_height = picture_width * height / width
    cell_height = picture_height + 0.15 * lines + 0.2
    rows = math.ceil(count / columns)
    size = (max(columns * cell_width, 6.0), rows * cell_height + 0.4)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(size[0] / 2, 0.2, title, ha="center", va="center", fontsize=11)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = (place % columns) * cell_width + (cell_width - picture_width) / 2
        bottom = 0.4 + (place // columns + 1) * cell_height - 0.05  # y down
        axes.imshow(
            picture.transpose(1, 2, 0),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
            extent=(left, left + picture_width, bottom, bottom - picture_height),
        )
        stands_out = bool(marked) and marked[place]
        axes.text(
            left + picture_width / 2,
            bottom - picture_height - 0.05,
            caption,
            ha="center",
            va="bottom",
            fontsize=8,
            color=RUST if stands_out else "black",
            fontweight="bold" if stands_out else "normal",
        )
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
    return figure


def curves(
    losses: Mapping[str, Mapping[str, Sequence[float]]],
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
) -> Figure:
    """Learning curves by epoch from {what: {"train" or "val": [one value an epoch]}}.

    Accuracy is drawn by the logarithm of the errors, so that 99.9 % and 99.99 % are apart.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, lines in ((loss_axes, losses), (accuracy_axes, accuracies)):
        for colour, (name, stages) in zip(CYCLE * len(lines), lines.items(), strict=False):
            for stage, style in (("train", "--"), ("val", "-")):
                if stage in stages:
                    values = np.asarray(stages[stage])
                    y = _digits(values) if axes is accuracy_axes else values
                    label = {"train": f"{name}, training", "val": f"{name}, validation"}[stage]
                    epochs = range(1, len(values) + 1)
                    axes.plot(epochs, y, style, color=colour, marker="o", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss_axes.set(ylabel="loss (nats)", yscale="log", title="Loss")
    _digit_axis(accuracy_axes)
    accuracy_axes.set(ylabel="accuracy (%), by its errors", title="Accuracy")
    handles, labels = loss_axes.get_legend_handles_labels()
    extra = [
        pair for pair in zip(*accuracy_axes.get_legend_handles_labels(), strict=True) if pair[1] not in labels
    ]
    figure.legend(
        [*handles, *(handle for handle, _ in extra)],
        [*labels, *(label for _, label in extra)],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    return figure


_MOST_DIGITS = 5.0  # all right is drawn where 99.999 % stands


def _digits(accuracy: Array) -> Array:
    """-log10 of the error rate: 90 % is 1, 99 % is 2."""
    errors: Array = np.maximum(1 - np.asarray(accuracy, dtype=np.float64), 10**-_MOST_DIGITS)
    return -np.log10(errors)


def _digit_axis(axes: Axes) -> None:
    marks = {0.0: "0", 1 - 0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99", 1.0: "100"}
    axes.set_yticks([float(_digits(np.array(mark))) for mark in marks], marks.values())


def confusion(counts: Array, classes: Sequence[str], title: str, parts: Sequence[Part] = ()) -> Figure:
    """A confusion matrix int (K, K), true classes by row. Where the classes are the product of `parts`
    (in row-major order), they are grouped by them, and each part has a matrix of its own beside."""
    if parts:
        return _grouped_confusion(counts, title, parts)
    size = max(3.4, 0.55 * len(classes) + 1.6)
    figure = Figure(figsize=(size + 0.6, size + 0.4), layout="constrained")
    axes = figure.subplots()
    _matrix(axes, counts, classes)
    axes.set_title(title, fontsize=11)
    figure.supxlabel("blue: right, orange: wrong; each cell counts images", fontsize=8)
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
    """RGB (K, K, 3): right answers from white to blue by their share of the row, wrong ones from pale to
    full orange by the logarithm of theirs, so that a single mistake is seen."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    strength = np.where(right, shares, np.clip(1 + np.log10(np.maximum(shares, 1e-9)) / 4, 0.35, 1))
    strength = np.where(counts == 0, 0, strength)[..., None]
    hue = np.where(right[..., None], _rgb(BLUE), _rgb(RUST))
    return 1 - strength * (1 - hue)  # type: ignore[no-any-return]


def _rgb(colour: str) -> Array:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _grouped_confusion(counts: Array, title: str, parts: Sequence[Part]) -> Figure:
    order, groups, (name, classes) = _grouping(parts)
    figure = Figure(figsize=(16, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
    axes = left.subplots()
    axes.imshow(_cells(counts[np.ix_(order, order)]), interpolation="nearest")
    step = len(classes)
    middles = np.arange(len(groups)) * step + (step - 1) / 2
    axes.set_xticks(middles, groups, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(middles, groups, fontsize=9)
    for border in np.arange(1, len(groups)) * step - 0.5:
        axes.axhline(border, color="0.8", linewidth=0.7)
        axes.axvline(border, color="0.8", linewidth=0.7)
    within = f"within each group by {name}, {classes[0]} to {classes[-1]}"
    axes.set(xlabel=f"predicted ({within})", ylabel=f"true ({within})")
    wrong = int(counts.sum() - np.trace(counts))
    axes.set_title(f"{title}: {wrong} of {counts.sum()} wrong; blue: right, orange: wrong", fontsize=11)

    top, below = right.subfigures(2, 1, squeeze=False, height_ratios=(1, 2))[:, 0]
    coarse = [part for part in parts if part[0] != name]
    places = dict(
        zip([part[0] for part in coarse], top.subplots(1, len(coarse), squeeze=False)[0], strict=True)
    )
    places[name] = below.subplots()
    sizes = [len(part[1]) for part in parts]
    for axis, (part, part_classes) in enumerate(parts):
        others = tuple(i for i in range(2 * len(parts)) if i not in (axis, axis + len(parts)))
        _matrix(places[part], counts.reshape(*sizes, *sizes).sum(axis=others), part_classes)
        places[part].set_title(f"by {part}", fontsize=10)
    return figure


def f_scores(scores: Mapping[str, Array], classes: Mapping[str, Sequence[str]]) -> Figure:
    """The F1 score of every class, {head: float (classes,)} in [0, 1], a panel a head."""
    widths = [max(2.2, len(values)) for values in scores.values()]
    figure = Figure(figsize=(max(5.0, 0.42 * sum(widths) + 2), 4.2), layout="constrained")
    lowest = min(float(np.min(values)) for values in scores.values())
    bottom = max(0.0, 1 - 1.25 * max(1 - lowest, 0.002))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        positions = np.arange(len(values))
        axes.vlines(positions, bottom, values, color=SKY, linewidth=1)
        axes.plot(positions, values, "o", color=BLUE, markersize=4)
        axes.set_xticks(positions, classes[name], rotation=90 if len(values) > 2 else 0, fontsize=8)
        axes.set_xlim(-0.7, len(values) - 0.3)
        axes.set_title(f"{name}: mean {np.mean(values):.4f}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("F1 score")
    panels[0].set_ylim(bottom, 1 + 0.08 * (1 - bottom))
    panels[0].ticklabel_format(axis="y", useOffset=False)
    return figure


def grouped_f_scores(scores: Array, title: str, parts: Sequence[Part]) -> Figure:
    """The F1 scores float (K,) of classes that are the product of `parts`: a row a group, a column a
    class of the finest part."""
    order, groups, (name, classes) = _grouping(parts)
    table = scores[order].reshape(len(groups), len(classes))
    figure = Figure(figsize=(0.75 * len(classes) + 2, 0.4 * len(groups) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="Oranges_r", vmin=min(0.8, float(table.min())) - 0.2, vmax=1, aspect="auto")
    for (row, column), score in np.ndenumerate(table):
        axes.text(column, row, f"{score:.4f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(classes)), classes, fontsize=8)
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_xlabel(name)
    axes.set_title(f"{title}: F1 score of each class, mean {np.mean(scores):.4f}", fontsize=10)
    return figure


def _grouping(parts: Sequence[Part]) -> tuple[Array, list[str], Part]:
    """An order of the product's classes that puts the finest part within groups of the others; the groups'
    names; and that part."""
    sizes = [len(classes) for _, classes in parts]
    inner = sizes.index(max(sizes))
    outer = [axis for axis in range(len(parts)) if axis != inner]
    order = np.arange(math.prod(sizes)).reshape(sizes).transpose(*outer, inner).ravel()
    groups = [" ".join(names) for names in product(*(parts[axis][1] for axis in outer))]
    return order, groups, parts[inner]
