"""The requests of the page: JSON, checked value by value. Anything wrong is a `UserError` of one line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnlab.data.line_scene import LineScene
from cnnlab.utils.errors import UserError, did_you_mean

MAX_SIDE = 256  # pixels of a drawing
LIMITS = {"length": (1.0, 40.0), "width": (0.5, 12.0), "angle": (-720.0, 720.0), "x": (-14.0, 42.0), "y": (-14.0, 42.0)}


@dataclass(frozen=True)
class Source:
    """The source of the image: a line, a drawing uint8 (H, W, 3), or the number of a test image of a run."""

    line: LineScene | None = None
    drawing: NDArray[np.uint8] | None = None
    run: str | None = None
    index: int | None = None


@dataclass(frozen=True)
class Question:
    """An image with paint on some pixels, [(x, y, (red, green, blue))], and the question: a method (None: no heatmaps),
    {head: class} for classes other than the predicted ones, and whether to return the layers' activations."""

    source: Source
    paint: Sequence[tuple[int, int, tuple[int, int, int]]]
    method: str | None
    targets: Mapping[str, int]
    inside: bool

    @classmethod
    def read(cls, asked: Mapping[str, Any]) -> Question:
        method, inside = asked.get("method"), asked.get("inside", False)
        if method is not None and not isinstance(method, str):
            raise UserError("method: give the name of a method")
        if not isinstance(inside, bool):
            raise UserError("inside: give true or false")
        targets = _mapping(asked.get("targets", {}), "targets")
        numbers = {head: _whole(number, f"targets.{head}", 0, 10**6) for head, number in targets.items()}
        return cls(source_of(asked), _paint(asked.get("paint", [])), method, numbers, inside)

    def painted(self, image: Tensor) -> Tensor:
        """Return `image` uint8 (C, H, W) with the paint. An image of one channel gets the mean of the colour; pixels
        outside are ignored."""
        channels, height, width = image.shape
        image = image.clone()
        for x, y, colour in self.paint:
            if x < width and y < height:
                values = torch.tensor(colour, dtype=torch.float32)
                image[:, y, x] = (values if channels == 3 else values.mean()).round().to(torch.uint8)
        return image

    def unpainted(self, truth: Tensor) -> Tensor:
        """Return `truth` bool (H, W) without the painted pixels, which do not depend on the answer."""
        height, width = truth.shape
        truth = truth.clone()
        for x, y, _ in self.paint:
            if x < width and y < height:
                truth[y, x] = False
        return truth


def source_of(asked: Mapping[str, Any]) -> Source:
    """Return the source in `asked["input"]`. Raises `UserError`."""
    given = _mapping(asked.get("input"), "input")
    if len(given) != 1:
        raise UserError("input: give one of line, drawing and test")
    ((kind, value),) = given.items()
    value = _mapping(value, f"input.{kind}")
    if kind == "line":
        numbers = {name: _number(value.get(name), f"line.{name}", *limits) for name, limits in LIMITS.items()}
        return Source(line=LineScene(colour=_colour(value.get("colour"), "line.colour"), **numbers))
    if kind == "drawing":
        return Source(drawing=_drawing(value))
    if kind == "test":
        run = value.get("run")
        if run is not None and not isinstance(run, str):
            raise UserError("input.test.run: give the name of a run")
        return Source(run=run, index=_whole(value.get("index"), "input.test.index", 0, 2**31))
    raise UserError(f"there is no input '{kind}'{did_you_mean(kind, ['line', 'drawing', 'test'])}")


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name}: give an object")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name}: give a number in {low:g}..{high:g}")
    return float(value)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name}: give a whole number in {low}..{high}")
    return value


def _colour(value: Any, name: str) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise UserError(f"{name}: give [red, green, blue]")
    red, green, blue = (_whole(part, name, 0, 255) for part in value)
    return red, green, blue


def _paint(value: Any) -> list[tuple[int, int, tuple[int, int, int]]]:
    if not isinstance(value, list) or not all(isinstance(spot, list) and len(spot) == 5 for spot in value):
        raise UserError("paint: give a list of [x, y, red, green, blue]")
    return [
        (_whole(x, "paint: x", 0, 10**4), _whole(y, "paint: y", 0, 10**4), _colour(rgb, "paint"))
        for x, y, *rgb in value
    ]


def _drawing(value: Mapping[str, Any]) -> NDArray[np.uint8]:
    width, height = (_whole(value.get(name), f"drawing.{name}", 1, MAX_SIDE) for name in ("width", "height"))
    try:
        pixels = base64.b64decode(value.get("pixels") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        pixels = b""
    if len(pixels) != 3 * width * height:
        raise UserError(f"drawing.pixels: give {3 * width * height} bytes, red, green, blue by row, as base64")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
