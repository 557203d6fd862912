"""What a straight line is, and how it is drawn: 28 x 28 x 3, on black.

A line is a kind (length, width, angle, colour) and a centre. Both reports, section "line dataset"; kinds
are numbered in the order of the file names `length_width_angle_colour_id`. The reports have red and blue
lines, 96 kinds; green ones are for the question whether a trained network can learn them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IMAGE_SIZE = 28  # pixels; every line is drawn on IMAGE_SIZE x IMAGE_SIZE of them

LENGTHS = {"short": 7.0, "long": 15.0}  # pixels
WIDTHS = {"thin": 1.0, "thick": 3.0}  # pixels
ANGLES = {f"{degrees}°": math.radians(degrees) for degrees in range(0, 180, 15)}  # counter-clockwise
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}  # RGB

ATTRIBUTES = {"length": tuple(LENGTHS), "width": tuple(WIDTHS), "angle": tuple(ANGLES), "colour": tuple(COLOURS)}
SHAPE = tuple(len(values) for values in ATTRIBUTES.values())
KINDS = math.prod(SHAPE)

# How a line is drawn: as other programs do, so that a network can learn lines and not a renderer.
STYLES = ("antialiased", "hard", "supersampled", "literal", "capped")
Style = str | Tensor  # the name of one for all, or the number of one for each image, int64 (B,)

_PIXELS = torch.arange(IMAGE_SIZE) + 0.5  # their centres, along either axis

# Of every kind, (144,) each.
_AT = dict(zip(ATTRIBUTES, torch.unravel_index(torch.arange(KINDS), SHAPE), strict=True))
_LENGTH = torch.tensor(list(LENGTHS.values()))[_AT["length"]]
_WIDTH = torch.tensor(list(WIDTHS.values()))[_AT["width"]]
_COS = torch.tensor([math.cos(angle) for angle in ANGLES.values()])[_AT["angle"]]
_SIN = torch.tensor([math.sin(angle) for angle in ANGLES.values()])[_AT["angle"]]

# What x and y, from the centre and y down, each add to the place along the line and to that across it,
# (2, 2, 144); and half of the line's box, (2, 144).
_TURN = torch.stack([torch.stack([_COS, -_SIN]), torch.stack([-_SIN, -_COS])])
_HALF = torch.stack([_LENGTH, _WIDTH]) / 2

# Which channels a kind's colour lights, 1 or 0, uint8 (144, 3); and what makes a grey level in [0, 255] a
# value in [0, 1] there and 0 elsewhere, when divided by it.
_LIT = (torch.tensor(list(COLOURS.values()))[_AT["colour"]] // 255).to(torch.uint8)
_DIVISOR = torch.where(_LIT == 1, 255.0, math.inf)


def attributes_of(kinds: Tensor) -> dict[str, Tensor]:
    """{attribute: int64 (B,)} of kinds int64 (B,) in [0, 144)."""
    return {name: values[kinds] for name, values in _AT.items()}


def kind_of(attributes: dict[str, Tensor]) -> Tensor:
    """Class numbers int64 (B,) in [0, 144) of {attribute: int64 (B,)}; the inverse of `attributes_of`."""
    kinds = torch.zeros_like(attributes["length"])
    for name, values in ATTRIBUTES.items():
        kinds = kinds * len(values) + attributes[name]
    return kinds


def centre_bounds(kinds: Tensor, style: Style = "antialiased") -> tuple[Tensor, Tensor]:
    """Lowest and highest (x, y) in pixels, float32 (B, 2) each, of a centre whose whole line is inside. Of literal
    lines the end points are inside; the half pixel beyond them may be cut by the image's edge."""
    cos, sin = _COS[kinds].abs(), _SIN[kinds].abs()
    length, width = _LENGTH[kinds], _WIDTH[kinds]
    round_ends = torch.as_tensor(_number(style) == _number("capped")).expand(len(kinds))
    across_x, across_y = (torch.where(round_ends, 1.0, slope) for slope in (sin, cos))
    half = torch.stack([length * cos + width * across_x, length * sin + width * across_y], dim=1) / 2
    return half, IMAGE_SIZE - half


def coverage(kinds: Tensor, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """How much of each pixel the line covers, float32 (B, 28, 28) in [0, 1].

    `kinds` int64 (B,); `centres` float32 (B, 2), (x, y) in pixels from the top left corner, y down; `style` one of
    `STYLES` for all, or the number of one for each, int64 (B,).
    """
    if isinstance(style, Tensor):
        drawn = torch.empty(len(kinds), IMAGE_SIZE, IMAGE_SIZE)
        for number in style.unique().tolist():
            rows = style == number
            drawn[rows] = _DRAW[STYLES[number]](kinds[rows], centres[rows])
        return drawn
    return _DRAW[style](kinds, centres)


def _number(style: Style) -> Any:
    return STYLES.index(style) if isinstance(style, str) else style


def _inside(turn: Tensor, half: Tensor, centres: Tensor) -> Tensor:
    """How far inside the edges of its box each pixel's centre is, along and across the line, (2, B, 28, 28): in place
    and in few passes. `turn` (2, 2, B) and `half` (2, B) are as `_TURN` and `_HALF`."""
    of_x, of_y = (turn[..., None] * (_PIXELS - centres.T[:, None, :, None])).unbind()  # (2, B, 28)
    inside = of_x[:, :, None, :] + of_y[:, :, :, None]
    return torch.sub(half[..., None, None], inside.abs_(), out=inside)


def _antialiased(kinds: Tensor, centres: Tensor) -> Tensor:
    """By the signed distance of the pixel's centre to the box's edges: coverage falls from 1 to 0 over one pixel, and
    is the exact area for an upright line."""
    along, across = _inside(_TURN[:, :, kinds], _HALF[:, kinds], centres).add_(0.5).clamp_(0, 1).unbind()
    return along.mul_(across)


def _hard(kinds: Tensor, centres: Tensor) -> Tensor:
    """A pixel is on where its centre is in the box."""
    return (_inside(_TURN[:, :, kinds], _HALF[:, kinds], centres) >= 0).all(dim=0).float()


def _supersampled(kinds: Tensor, centres: Tensor) -> Tensor:
    """The share of 4 x 4 points of the pixel that are in the box: its area, nearly."""
    places = (torch.arange(4) - 1.5) / 4
    drawn = sum(_hard(kinds, centres + torch.stack([x, y])) for x in places for y in places)
    assert isinstance(drawn, Tensor)
    return drawn / 16


def _literal(kinds: Tensor, centres: Tensor) -> Tensor:
    """Hard pixels from the pixel of one end point to that of the other, both included, as a program draws that takes
    whole numbers: the line is up to a pixel longer, and turned a little."""
    reach = torch.stack([_COS[kinds], -_SIN[kinds]], dim=1) * _LENGTH[kinds, None] / 2
    first, last = ((centres + sign * reach).floor().clamp(0, IMAGE_SIZE - 1) + 0.5 for sign in (-1, 1))
    length = (last - first).norm(dim=1)
    x, y = ((last - first) / length[:, None]).unbind(dim=1)
    turn = torch.stack([torch.stack([x, y]), torch.stack([y, -x])])
    half = torch.stack([length + 1, _WIDTH[kinds]]) / 2
    return (_inside(turn, half, (first + last) / 2) >= -1e-4).all(dim=0).float()


def _capped(kinds: Tensor, centres: Tensor) -> Tensor:
    """Anti-aliased, with round caps beyond the end points, half as long as the line is wide."""
    half = _HALF[:, kinds]
    beyond, across = _inside(_TURN[:, :, kinds], half, centres).unbind()
    across = half[1, :, None, None] - across  # from the axis
    distance = torch.hypot(beyond.neg().clamp_(min=0), across)
    return (half[1, :, None, None] + 0.5 - distance).clamp(0, 1)


_DRAW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "antialiased": _antialiased,
    "hard": _hard,
    "supersampled": _supersampled,
    "literal": _literal,
    "capped": _capped,
}


def grey_levels(kinds: Tensor, centres: Tensor, style: Style) -> Tensor:
    """`coverage` in whole steps of 1/255, as float32 (B, 28, 28) in [0, 255]."""
    return coverage(kinds, centres, style).mul_(255).round_()


def render(kinds: Tensor, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """The 8-bit images, uint8 (B, 3, 28, 28), of `kinds` int64 (B,) at `centres` float32 (B, 2)."""
    grey = grey_levels(kinds, centres, style).to(torch.uint8)
    return grey[:, None] * _LIT[kinds][:, :, None, None]


def render_float(kinds: Tensor, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """What `render` draws, divided by 255, float32 (B, 3, 28, 28) in [0, 1]; sooner than by dividing."""
    return grey_levels(kinds, centres, style)[:, None] / _DIVISOR[kinds][:, :, None, None]


def line_mask(kinds: Tensor, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """The pixels that the line lights in the 8-bit image, bool (B, 28, 28)."""
    return grey_levels(kinds, centres, style) > 0


def counterfactual_mask(attribute: str, kinds: Tensor, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """The pixels of the 8-bit image, bool (B, 28, 28), that change when the same line is drawn with another
    value of one attribute: what carries the answer to that question, black pixels among it.

    Of the angles only the two neighbours count, 15° to either side: the union over all angles is a disc.
    """
    at = attributes_of(kinds)
    values = len(ATTRIBUTES[attribute])
    image = render(kinds, centres, style)
    changed = torch.zeros_like(image[:, 0], dtype=torch.bool)
    for step in {1, values - 1}:
        other = kind_of({**at, attribute: (at[attribute] + step) % values})
        changed |= (render(other, centres, style) != image).any(dim=1)
    return changed
