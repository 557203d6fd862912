"""One line of any length, width, angle and colour, with its right pixels and the path to another line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.rendering import ATTRIBUTES, COLOURS, LENGTHS, WIDTHS, Lines, centre_bounds, coverage

STEP = 180 / len(ATTRIBUTES["angle"])  # degrees between two angles


@dataclass(frozen=True)
class LineScene:
    """A line of `length` and `width` in pixels at an `angle` in degrees from the x-axis, counter-clockwise; its
    `colour` (red, green, blue) in [0, 255] and its centre (`x`, `y`) in pixels from the top left corner, y down."""

    length: float
    width: float
    angle: float
    colour: tuple[int, int, int]
    x: float
    y: float

    def counterfactuals(self, attribute: str) -> list[LineScene]:
        """Return the line with other values of one attribute: every class but the nearest; for the angle ±15°."""
        if attribute == "angle":
            return [replace(self, angle=self.angle + step) for step in (-STEP, STEP)]
        if attribute == "colour":
            near = min(COLOURS.values(), key=lambda colour: math.dist(colour, self.colour))
            return [replace(self, colour=colour) for colour in COLOURS.values() if colour != near]
        if attribute == "length":
            return [replace(self, length=length) for length in _but_the_nearest(LENGTHS.values(), self.length)]
        return [replace(self, width=width) for width in _but_the_nearest(WIDTHS.values(), self.width)]

    def truth(self, attributes: Sequence[str], style: str = "antialiased") -> Tensor:
        """Return the pixels bool (28, 28) that change when one of the attributes takes another value."""
        others = [other for attribute in attributes for other in self.counterfactuals(attribute)]
        image, *changed = draw([self, *others], style)
        truth: Tensor = (torch.stack(changed) != image).any(dim=1).any(dim=0)
        return truth

    def of_each_class(self, attribute: str, colours: Iterable[str]) -> list[LineScene]:
        """Return the line with the value of each class of an attribute, moved as far as it must be to stay inside the
        image. Angles are reached by the shorter turn; `colours` are the names of the known ones."""
        values: dict[str, Iterable[Any]] = {
            "length": LENGTHS.values(),
            "width": WIDTHS.values(),
            "angle": [self.angle + (k * STEP - self.angle + 90) % 180 - 90 for k in range(len(ATTRIBUTES["angle"]))],
            "colour": [COLOURS[name] for name in colours],
        }
        return [replace(self, **{attribute: value})._inside() for value in values[attribute]]

    def path_to(self, end: LineScene, steps: int) -> list[LineScene]:
        """Return `steps` lines from this one to another."""
        return [self._lerp(end, step / (steps - 1)) for step in range(steps)]

    def _inside(self) -> LineScene:
        (low,), (high,) = centre_bounds(_lines([self]))
        x, y = torch.tensor([self.x, self.y]).clamp(torch.minimum(low, high), high).tolist()
        return replace(self, x=x, y=y)

    def _lerp(self, end: LineScene, share: float) -> LineScene:
        def between(first: float, last: float) -> float:
            return first + share * (last - first)

        red, green, blue = (round(between(*pair)) for pair in zip(self.colour, end.colour, strict=True))
        numbers = {
            name: between(getattr(self, name), getattr(end, name)) for name in ("length", "width", "angle", "x", "y")
        }
        return LineScene(colour=(red, green, blue), **numbers)


def _but_the_nearest(values: Iterable[float], value_now: float) -> list[float]:
    return sorted(values, key=lambda value: abs(value - value_now))[1:]


def draw(scenes: Sequence[LineScene], style: str = "antialiased") -> Tensor:
    """Return the 8-bit images uint8 (N, 3, 28, 28); for a line of a class the same as `rendering.render`."""
    centres = torch.tensor([[scene.x, scene.y] for scene in scenes])
    grey = coverage(_lines(scenes), centres, style).mul_(255).round_()
    colours = torch.tensor([scene.colour for scene in scenes]).float() / 255
    return (grey[:, None] * colours[:, :, None, None]).round_().to(torch.uint8)


def _lines(scenes: Sequence[LineScene]) -> Lines:
    length, width, angle = torch.tensor([[scene.length, scene.width, scene.angle] for scene in scenes]).double().T
    turn = angle.deg2rad()
    return Lines(length.float(), width.float(), turn.cos().float(), turn.sin().float())
