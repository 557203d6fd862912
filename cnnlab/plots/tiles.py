"""Grids of images: captions, heatmaps, the maps of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from cnnlab.plots.style import BLUE, RUST, WRONG, Array, TiledFigure, rgb

WIDEST = 13.5  # inches: rows of tiles that are wider run on in the next line


def images(
    pictures: Array,
    captions: Sequence[str],
    title: str,
    marked: Sequence[bool] = (),
    columns: int = 6,
    picture_width: float = 1.5,
) -> Figure:
    """Draw a grid of pictures uint8 (N, C, H, W), C 1 or 3, `picture_width` inches wide, with captions; `marked`
    captions stand out.

    All pictures share one axes in inches: a grid of axes takes a second to lay out.
    """
    count, _, height, width = pictures.shape
    columns = min(columns, count)
    lines = max(caption.count("\n") + 1 for caption in captions)
    cell_width = picture_width + 0.4
    picture_height = picture_width * height / width
    cell_height = picture_height + 0.15 * lines + 0.2
    rows = math.ceil(count / columns)
    title_lines = title.split("\n")
    top = 0.4 + 0.18 * (len(title_lines) - 1)
    size = (max(columns * cell_width, 0.09 * max(map(len, title_lines))), rows * cell_height + top)
    margin = (size[0] - columns * cell_width) / 2
    figure = TiledFigure(figsize=size)
    figure.title, cells = title, []
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(size[0] / 2, top / 2, title, ha="center", va="center", fontsize=11)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        cell = margin + (place % columns) * cell_width, top + (place // columns) * cell_height
        cells.append((*cell, cell[0] + cell_width, cell[1] + cell_height))
        left, bottom = cell[0] + (cell_width - picture_width) / 2, cells[-1][3] - 0.05  # y down
        axes.imshow(
            picture.transpose(1, 2, 0),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
            extent=(left, left + picture_width, bottom, bottom - picture_height),
        )
        frame = (left, bottom - picture_height), picture_width, picture_height
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor="#b0b0b0", linewidth=0.6))  # white ends there, too
        stands_out = bool(marked) and marked[place]
        axes.text(
            left + picture_width / 2,
            bottom - picture_height - 0.05,
            caption,
            ha="center",
            va="bottom",
            fontsize=8,
            color=WRONG if stands_out else "black",
            fontweight="bold" if stands_out else "normal",
        )
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
    in_row = columns if columns * cell_width <= WIDEST else count
    figure.tiles = [cells[first : first + in_row] for first in range(0, count, in_row)]
    return figure


def small_images(pixels: Array, captions: Sequence[str], title: str, marked: Sequence[bool] = ()) -> Figure:
    """Draw `images` of many small pictures float (N, C, H, W) in [0, 255]."""
    levels = np.rint(pixels).astype(np.uint8)
    return images(levels, captions, title, marked=marked, columns=12, picture_width=0.95)


def heat(values: Array) -> Array:
    """Return a map float (H, W) in colours, uint8 (3, H, W): from 0 (black) to its highest value (yellow). A map with
    negative values goes from blue over white (0) to orange, by the largest magnitude."""
    shares = values / (float(np.abs(values).max()) or 1.0)
    signed = bool(values.min() < 0)
    rows = np.rint(shares * 127).astype(int) + 128 if signed else np.rint(shares * 255).astype(int)
    pixels: Array = heat_tables()["signed" if signed else "positive"][rows]
    return pixels.transpose(2, 0, 1)


def heat_tables() -> dict[str, Array]:
    """Return the colours of `heat`, uint8 (256, 3) each: "positive" from 0 to the highest value; "signed" with 0 in row
    128 and the largest magnitude in rows 1 and 255."""
    share = np.clip((np.arange(256) - 128) / 127, -1, 1)[:, None]
    ends = np.where(share < 0, rgb(BLUE), rgb(RUST))
    signed = 1 - np.abs(share) * (1 - ends)
    positive = colormaps["inferno"](np.arange(256))[:, :3]
    return {name: np.rint(table * 255).astype(np.uint8) for name, table in (("positive", positive), ("signed", signed))}


def overlay(picture: Array, values: Array) -> Array:
    """Return the map over its picture uint8 (C, H, W). Stronger evidence gets more of its colour, at most four
    fifths."""
    most = float(np.abs(values).max()) or 1.0
    share = 0.8 * np.abs(values) / most
    under = np.broadcast_to(picture, (3, *values.shape))
    return np.rint(under * (1 - share) + heat(values) * share).astype(np.uint8)


def mosaics(
    pictures: Array, maps: Array, numbers: Sequence[int], marks: Mapping[int, str], names: Sequence[str], title: str
) -> Figure:
    """Draw a row per image: the picture uint8 (N, C, H, W) and its maps float (N, K, h, w), map k of channel
    `numbers[k]`, which stands in the first row. Brightness goes from the lowest to the highest value of the row;
    `marks` are written on channels by number."""
    count, channels, height, width = maps.shape
    columns = min(channels, 16 if width > 1 else 64)
    rows = math.ceil(channels / columns)
    wide = 12.0
    cell = wide / columns
    band = max(rows * cell * height / width, 1.1) + 0.15
    figure = TiledFigure(figsize=(wide + 1.6, count * band + 0.7))
    edges = [1.4 + cell * k for k in range(0, columns, max(1, columns // 4))] + [1.4 + wide]
    figure.title, figure.tiles = (
        title,
        [
            [(left, top, right, top + band) for left, right in pairwise([0.0, *edges])]
            for top in (0.45 + place * band for place in range(count))
        ],
    )
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.1, 0.25, title, fontsize=11, va="center")
    for place in range(count):
        top = 0.6 + place * band
        picture = pictures[place].transpose(1, 2, 0)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0.1, 1.1, top + 1, top), interpolation="nearest")
        axes.text(0.6, top - 0.03, names[place], fontsize=6, ha="center", va="bottom")
        gap = max(1, round(width * 0.04)) if width > 1 else 0
        canvas = np.full((rows * (height + gap), columns * (width + gap)), np.nan)
        for k in range(channels):
            y, x = (k // columns) * (height + gap), (k % columns) * (width + gap)
            canvas[y : y + height, x : x + width] = maps[place, k]
        bottom = top + rows * cell * height / width
        axes.imshow(canvas, cmap="viridis", extent=(1.4, 1.4 + wide, bottom, top), interpolation="nearest")
        for k, number in enumerate(numbers):
            if width > 1 and place == 0:  # a tile of a dense layer is too small for a number
                left, upper = 1.4 + (k % columns) * cell, top + (k // columns) * cell * height / width
                axes.text(left + 0.02, upper + 0.02, str(number), color="white", fontsize=6, va="top",
                          path_effects=[withStroke(linewidth=0.8, foreground="black")])  # fmt: skip
            if number in marks:
                x = 1.4 + (k % columns + 0.5) * cell
                y = top + (k // columns + 0.5) * cell * height / width
                style: dict[str, Any] = {"color": "white", "backgroundcolor": RUST, "fontsize": 6}
                axes.text(x, y, marks[number], ha="center", va="center", **style)
    axes.set(xlim=(0, wide + 1.6), ylim=(count * band + 0.7, 0), aspect="auto")
    return figure
