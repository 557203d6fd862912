"""Tables of classes as pictures: confusion matrices and F1 scores, grouped where there are many classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnlab.log import percent
from cnnlab.plots.style import RIGHT, WRONG, Array, Part, rgb


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
    """RGB (K, K, 3): right answers from white to grey by their share of the row, wrong ones from pale to full orange by
    the logarithm of theirs, so that a single mistake is seen."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    strength = np.where(right, shares, np.clip(1 + np.log10(np.maximum(shares, 1e-9)) / 4, 0.2, 1))
    strength = np.where(counts == 0, 0, strength)[..., None]
    hue = np.where(right[..., None], rgb(RIGHT), rgb(WRONG))
    return 1 - strength * (1 - hue)  # type: ignore[no-any-return]


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
    axes.set_title(f"{title}: {wrong} of {counts.sum()} wrong; grey: right, orange: wrong", fontsize=11)

    top, below = right.subfigures(2, 1, squeeze=False, height_ratios=(1, 2))[:, 0]
    coarse = [part for part in parts if part[0] != name]
    places = dict(zip([part[0] for part in coarse], top.subplots(1, len(coarse), squeeze=False)[0], strict=True))
    places[name] = below.subplots()
    sizes = [len(part[1]) for part in parts]
    for axis, (part, part_classes) in enumerate(parts):
        others = tuple(i for i in range(2 * len(parts)) if i not in (axis, axis + len(parts)))
        _matrix(places[part], counts.reshape(*sizes, *sizes).sum(axis=others), part_classes)
        places[part].set_title(f"by {part}", fontsize=10)
    return figure


def by_class(heads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Accuracies in [0, 1], {head: {class: {row: accuracy}}}: a column a class, grouped by head; the paler,
    the more errors, by their logarithm."""
    columns = [(head, name) for head, classes in heads.items() for name in classes]
    names = list(heads[columns[0][0]][columns[0][1]])
    table = np.array([[heads[head][column][name] for head, column in columns] for name in names])
    text = [[percent(share).removesuffix(" %") for share in row] for row in table]
    labels = [name.replace("joint_accuracy", "all") for name in names]
    errors = np.log10(np.maximum(1 - table, 1e-5))
    figure, axes = written_table(errors, text, [name for _, name in columns], labels, (0.62, 1.8), (-5.0, 1.0))
    start = 0
    for head, classes in heads.items():
        axes.axvline(start - 0.5, color="0.3", linewidth=1)
        axes.text(start - 0.4, -0.65, head, fontsize=9, va="bottom")
        start += len(classes)
    axes.set_xlabel("test images of this class")
    axes.set_ylabel("head that is right (%)")
    return figure


def grouped_f_scores(scores: Array, title: str, parts: Sequence[Part]) -> Figure:
    """The F1 scores float (K,) of classes that are the product of `parts`: a row a group, a column a
    class of the finest part."""
    order, groups, (name, classes) = _grouping(parts)
    table = scores[order].reshape(len(groups), len(classes))
    text = [["–" if math.isnan(score) else percent(score).removesuffix(" %") for score in row] for row in table]
    limits = (0.0, 1.2 - min(0.8, float(np.nanmin(table))))
    figure, axes = written_table(1 - table, text, classes, groups, (0.75, 2.0), limits)
    axes.set_xlabel(name)
    axes.set_title(f"{title}: F1 score of each class in %, mean {percent(float(np.nanmean(scores)))}", fontsize=10)
    return figure


def written_table(
    values: Array,
    text: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    width: tuple[float, float],
    limits: tuple[float, float],
) -> tuple[Figure, Axes]:
    """A table with a text in each cell, the darker the higher its value within `limits`; `width` is a column's and
    that of the names beside, in inches."""
    size = (width[0] * len(columns) + width[1], 0.38 * len(rows) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="Oranges", vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = value > limits[0] + 0.6 * (limits[1] - limits[0])
        colour = "white" if dark else "black"
        axes.text(column, row, text[row][column], ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    return figure, axes


def _grouping(parts: Sequence[Part]) -> tuple[Array, list[str], Part]:
    """An order of the product's classes that puts the finest part within groups of the others; the groups'
    names; and that part."""
    sizes = [len(classes) for _, classes in parts]
    inner = sizes.index(max(sizes))
    outer = [axis for axis in range(len(parts)) if axis != inner]
    order = np.arange(math.prod(sizes)).reshape(sizes).transpose(*outer, inner).ravel()
    groups = [" ".join(names) for names in product(*(parts[axis][1] for axis in outer))]
    return order, groups, parts[inner]
