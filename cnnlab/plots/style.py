"""Colours for colour-blind readers (Okabe and Ito 2008), and saving."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, SKY, PINK, RUST = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00",
)  # fmt: skip
RIGHT, WRONG = "#4d6472", RUST  # answers, and nothing else
PASSED, UNDECIDED, FAILED = "#9fd3c0", "#f5dc8c", "#eda07f"  # checks
VIOLET = "#6b4c9a"
CYCLE = (
    BLUE, ORANGE, GREEN, PINK, SKY, VIOLET, "#000000", "#8c564b", "#7f7f7f", "#a3a500", "#e7298a", "#1b9e9e", "#00429d",
    "#93003a", "#66a61e", "#c49c00", "#5a3d00", "#9ecae1", "#bcbddc", "#fdae6b",
)  # fmt: skip
DPI = 110

rcParams["text.parse_math"] = False  # a file name may hold dollars

Array = NDArray[Any]


Box = tuple[float, float, float, float]  # left, top, right, bottom in inches


class TiledFigure(Figure):
    """A figure of rows of tiles below a title; without `tiles` each axes is one, and each legend. A narrow page shows
    the tiles of a row below each other."""

    title = ""
    tiles: Sequence[Sequence[Box]] = ()


def save(figure: Figure, path: Path | BinaryIO) -> None:
    """Write a PNG. Its metadata hold the title and the tiles of a `TiledFigure`."""
    FigureCanvasAgg(figure)
    metadata = {}
    if isinstance(figure, TiledFigure):
        metadata = {"Title": figure.title, "Tiles": json.dumps(figure.tiles or [_parts(figure)])}
    figure.savefig(path, dpi=DPI, facecolor="white", metadata=metadata, pil_kwargs={"compress_level": 1})


def _parts(figure: Figure) -> list[Box]:
    """Return the places of axes and legends, each as high as the figure."""
    figure.draw_without_rendering()
    boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
    height, dpi, edge = figure.get_figheight(), figure.dpi, 0.05
    return [(max(0, box.x0 / dpi - edge), 0, box.x1 / dpi + edge, height) for box in boxes if box is not None]


def line_styles() -> Iterator[tuple[str, str]]:
    """Yield (colour, marker) for one curve after another: twenty colours, then the same with another marker."""
    for marker in cycle("os^D"):
        for colour in CYCLE:
            yield colour, marker


def rgb(colour: str) -> Array:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
