"""Straight lines and how they are drawn: 28 x 28 x 3 pixels, on black.

A line has a class id (length, width, angle, colour) and a centre. Class ids follow the reports' file names,
`length_width_angle_colour_id`. The reports have red and blue lines, 96 classes; we add green ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IMAGE_SIZE = 28  # pixels; every line is drawn on IMAGE_SIZE x IMAGE_SIZE of them

LENGTHS = {"short": 7.0, "long": 15.0}  # pixels
WIDTHS = {"thin": 1.0, "thick": 3.0}  # pixels
ANGLES = {f"{degrees}°": math.radians(degrees) for degrees in range(0, 180, 15)}  # counter-clockwise
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}  # RGB

ATTRIBUTES = {"length": tuple(LENGTHS), "width": tuple(WIDTHS), "angle": tuple(ANGLES), "colour": tuple(COLOURS)}
SHAPE = tuple(len(values) for values in ATTRIBUTES.values())
NUM_CLASSES = math.prod(SHAPE)

ROUND_ENDS = ("capped", "capped_fitted", "brush", "brush_fitted", "soft")
Style = str | Tensor  # one name for all images, or a number each, int64 (B,)
# Factors of length and width, and a turn in radians, float32 (3, B); None: no change.
Jitter = Tensor | None

_PIXELS = torch.arange(IMAGE_SIZE) + 0.5  # their centres, along either axis

_AT = dict(zip(ATTRIBUTES, torch.unravel_index(torch.arange(NUM_CLASSES), SHAPE), strict=True))  # (144,) each

# The channels of each class, 1 or 0, uint8 (144, 3)
_LIT = (torch.tensor(list(COLOURS.values()))[_AT["colour"]] // 255).to(torch.uint8)


@dataclass(frozen=True)
class Lines:
    """Lines of any length and width in pixels, and any angle from the x-axis, counter-clockwise, as cosine and sine:
    float32 (B,) each."""

    length: Tensor
    width: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def from_class_ids(cls, class_ids: Tensor, jitter: Jitter = None) -> Lines:
        """Return the lines of `class_ids` int64 (B,) in [0, 144), with `jitter`."""
        lines = _ALL_LINES[class_ids]
        if jitter is None:
            return lines
        longer, wider, turn = jitter
        return replace(lines, length=lines.length * longer, width=lines.width * wider).turned(turn)

    def turned(self, radians: Tensor) -> Lines:
        """Return the lines turned counter-clockwise by float32 (B,) or () radians."""
        cos, sin = radians.cos(), radians.sin()
        return replace(self, cos=self.cos * cos - self.sin * sin, sin=self.sin * cos + self.cos * sin)

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: Tensor) -> Lines:
        return Lines(self.length[rows], self.width[rows], self.cos[rows], self.sin[rows])

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """The rotation from image axes (y down) to line axes, (2, 2, B), and half of length and width, (2, B)."""
        turn = torch.stack([torch.stack([self.cos, -self.sin]), torch.stack([-self.sin, -self.cos])])
        return turn, torch.stack([self.length, self.width]) / 2


_ALL_LINES = Lines(
    torch.tensor(list(LENGTHS.values()))[_AT["length"]],
    torch.tensor(list(WIDTHS.values()))[_AT["width"]],
    torch.tensor([math.cos(angle) for angle in ANGLES.values()])[_AT["angle"]],
    torch.tensor([math.sin(angle) for angle in ANGLES.values()])[_AT["angle"]],
)


def attributes_of(class_ids: Tensor) -> dict[str, Tensor]:
    """Return {attribute: int64 (B,)} of class ids int64 (B,) in [0, 144)."""
    return {name: values[class_ids] for name, values in _AT.items()}


def class_id_of(attributes: dict[str, Tensor]) -> Tensor:
    """Return class ids int64 (B,) in [0, 144) of {attribute: int64 (B,)}."""
    class_ids = torch.zeros_like(attributes["length"])
    for name, values in ATTRIBUTES.items():
        class_ids = class_ids * len(values) + attributes[name]
    return class_ids


def centre_bounds(lines: Lines, style: Style = "antialiased") -> tuple[Tensor, Tensor]:
    """Return the lowest and highest (x, y) in pixels, float32 (B, 2) each, of a centre that keeps the line inside. For
    literal lines this holds for the end points, for soft ones at half the brightness."""
    cos, sin = lines.cos.abs(), lines.sin.abs()
    numbers = torch.tensor(STYLES.index(style)) if isinstance(style, str) else style
    round_ends = torch.isin(numbers, torch.tensor([STYLES.index(name) for name in ROUND_ENDS])).expand(len(lines))
    across_x, across_y = (torch.where(round_ends, 1.0, slope) for slope in (sin, cos))
    reach = [lines.length * cos + lines.width * across_x, lines.length * sin + lines.width * across_y]
    half = torch.stack(reach, dim=1) / 2
    return half, IMAGE_SIZE - half


def coverage(lines: Lines, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """Return how much of each pixel the line covers, float32 (B, 28, 28) in [0, 1].

    `centres` float32 (B, 2) are (x, y) in pixels from the top left corner, y down. `style` is one of `STYLES`, or a
    number for each line, int64 (B,).
    """
    if isinstance(style, Tensor):
        drawn = torch.empty(len(lines), IMAGE_SIZE, IMAGE_SIZE)
        for number in style.unique().tolist():
            rows = style == number
            drawn[rows] = _DRAW[STYLES[number]](lines[rows], centres[rows])
        return drawn
    return _DRAW[style](lines, centres)


def _inside(box: tuple[Tensor, Tensor], centres: Tensor) -> Tensor:
    """Return the distance of each pixel's centre to the box's edges (see `Lines.box`), along and across the line,
    positive inside, (2, B, 28, 28)."""
    turn, half = box
    of_x, of_y = (turn[..., None] * (_PIXELS - centres.T[:, None, :, None])).unbind()  # (2, B, 28)
    inside = of_x[:, :, None, :] + of_y[:, :, :, None]
    return torch.sub(half[..., None, None], inside.abs_(), out=inside)


def _antialiased(lines: Lines, centres: Tensor) -> Tensor:
    """Let the coverage fall from 1 to 0 over one pixel around the edge; exact for upright lines."""
    along, across = _inside(lines.box, centres).add_(0.5).clamp_(0, 1).unbind()
    return along.mul_(across)


def _hard(lines: Lines, centres: Tensor) -> Tensor:
    """Light the pixels with their centre in the box."""
    return (_inside(lines.box, centres) >= 0).all(dim=0).float()


def _supersampled(lines: Lines, centres: Tensor) -> Tensor:
    """Return the share of 4 x 4 points of each pixel inside the box."""
    places = (torch.arange(4) - 1.5) / 4
    drawn = sum(_hard(lines, centres + torch.stack([x, y])) for x in places for y in places)
    assert isinstance(drawn, Tensor)
    return drawn / 16


def _snapped(lines: Lines, centres: Tensor) -> tuple[Lines, Tensor]:
    """Return the lines between the pixel centres of their end points, and the lines' centres."""
    reach = torch.stack([lines.cos, -lines.sin], dim=1) * lines.length[:, None] / 2
    first, last = ((centres + sign * reach).floor().clamp(0, IMAGE_SIZE - 1) + 0.5 for sign in (-1, 1))
    length = (last - first).norm(dim=1)
    x, y = ((last - first) / length[:, None]).unbind(dim=1)
    same_pixel = length == 0  # both end points in one pixel: it keeps its direction
    cos, sin = torch.where(same_pixel, lines.cos, x), torch.where(same_pixel, lines.sin, -y)
    return Lines(length, lines.width, cos, sin), (first + last) / 2


def _literal(lines: Lines, centres: Tensor) -> Tensor:
    """Draw hard pixels between the pixels of the end points, as programs with integer coordinates do. The line is up to
    a pixel longer, and slightly turned."""
    snapped, middle = _snapped(lines, centres)
    return (_inside(replace(snapped, length=snapped.length + 1).box, middle) >= -1e-4).all(dim=0).float()


def _capped(lines: Lines, centres: Tensor) -> Tensor:
    """Draw anti-aliased lines with round caps beyond the end points."""
    return (_inside_caps(lines, centres) + 0.5).clamp(0, 1)


def _brush(lines: Lines, centres: Tensor) -> Tensor:
    """Draw hard pixels with a round brush of the line's width, between the pixels of the end points."""
    return (_inside_caps(*_snapped(lines, centres)) >= -1e-4).float()


def _fitted(lines: Lines) -> Lines:
    """Return lines shortened by their caps, to at least one pixel."""
    return replace(lines, length=(lines.length - lines.width).clamp(min=1))


def _pointed(lines: Lines, centres: Tensor) -> Tensor:
    """Draw anti-aliased lines with ends that taper at 45°."""
    beside, across = _inside(lines.box, centres).unbind()
    tip = (beside + across - lines.width[:, None, None] / 2) / math.sqrt(2)
    return torch.minimum(across, tip).add_(0.5).clamp_(0, 1)


def _soft(lines: Lines, centres: Tensor) -> Tensor:
    """Draw capped and fitted lines out of focus: brightness falls by a third per pixel."""
    return _inside_caps(_fitted(lines), centres).div_(3).add_(0.5).clamp_(0, 1)


def _inside_caps(lines: Lines, centres: Tensor) -> Tensor:
    """Return the distance of each pixel's centre to the edge of a line with round caps, positive inside, (B, 28,
    28)."""
    beyond, across = _inside(lines.box, centres).unbind()
    radius = lines.width[:, None, None] / 2
    return radius - torch.hypot(beyond.neg().clamp_(min=0), radius - across)  # from the axis


# How a line is drawn: as other programs do, so that a network can learn lines and not a renderer.
_DRAW: dict[str, Callable[[Lines, Tensor], Tensor]] = {
    "antialiased": _antialiased,
    "hard": _hard,
    "supersampled": _supersampled,
    "literal": _literal,
    "capped": _capped,
    "capped_fitted": lambda lines, centres: _capped(_fitted(lines), centres),
    "brush": _brush,
    "brush_fitted": lambda lines, centres: _brush(_fitted(lines), centres),
    "pointed": _pointed,
    "soft": _soft,
}
STYLES = tuple(_DRAW)


def grey_levels(class_ids: Tensor, centres: Tensor, style: Style, jitter: Jitter = None) -> Tensor:
    """Return `coverage` in whole steps of 1/255, as float32 (B, 28, 28) in [0, 255]."""
    return coverage(Lines.from_class_ids(class_ids, jitter), centres, style).mul_(255).round_()


def render(class_ids: Tensor, centres: Tensor, style: Style = "antialiased", jitter: Jitter = None) -> Tensor:
    """Return the 8-bit images uint8 (B, 3, 28, 28) of `class_ids` int64 (B,) at `centres` float32 (B, 2)."""
    grey = grey_levels(class_ids, centres, style, jitter).to(torch.uint8)
    return grey[:, None] * _LIT[class_ids][:, :, None, None]


def counterfactual_ids(attribute: str, class_ids: Tensor, values: Sequence[int] | None = None) -> Tensor:
    """Return the class ids int64 (K, B) of the lines with another value of one attribute: every other one of `values`
    (None: all). Of more than three values only the two neighbours count, ±15° for angles, because all angles together
    would cover a disc."""
    at = attributes_of(class_ids)
    known = torch.arange(len(ATTRIBUTES[attribute])) if values is None else torch.tensor(values)
    place = (at[attribute][:, None] == known).long().argmax(dim=1)
    steps = sorted({1, len(known) - 1})
    return torch.stack([class_id_of({**at, attribute: known[(place + step) % len(known)]}) for step in steps])
