"""What a straight line is, and how it is drawn: 28 x 28 x 3, on black.

A line is a kind (length, width, angle, colour) and a centre. Both reports, section "line dataset"; kinds
are numbered in the order of the file names `length_width_angle_colour_id`. The reports have red and blue
lines, 96 kinds; green ones are for the question whether a trained network can learn them.
"""

from __future__ import annotations

import math

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


def centre_bounds(kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest (x, y) in pixels, float32 (B, 2) each, of a centre whose whole line is inside."""
    cos, sin = _COS[kinds].abs(), _SIN[kinds].abs()
    length, width = _LENGTH[kinds], _WIDTH[kinds]
    half = torch.stack([length * cos + width * sin, length * sin + width * cos], dim=1) / 2
    return half, IMAGE_SIZE - half


def coverage(kinds: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """How much of each pixel the line covers, float32 (B, 28, 28) in [0, 1].

    `kinds` int64 (B,); `centres` float32 (B, 2), (x, y) in pixels from the top left corner, y down.
    Anti-aliased by the signed distance of the pixel's centre to the box's edges, along and across the
    line: coverage falls from 1 to 0 over one pixel, and is the exact area for an upright line. Without
    `antialias` a pixel is on where its centre is in the box.
    """
    of_x, of_y = (_TURN[:, :, kinds, None] * (_PIXELS - centres.T[:, None, :, None])).unbind()  # (2, B, 28)
    # (2, B, 28, 28), in place and in few passes: first where a pixel is, then how far inside the box.
    inside = of_x[:, :, None, :] + of_y[:, :, :, None]
    torch.sub(_HALF[:, kinds, None, None], inside.abs_(), out=inside)
    if not antialias:
        return (inside >= 0).all(dim=0).float()
    along, across = inside.add_(0.5).clamp_(0, 1).unbind()
    return along.mul_(across)


def grey_levels(kinds: Tensor, centres: Tensor, antialias: bool) -> Tensor:
    """`coverage` in whole steps of 1/255, as float32 (B, 28, 28) in [0, 255]."""
    return coverage(kinds, centres, antialias).mul_(255).round_()


def render(kinds: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The 8-bit images, uint8 (B, 3, 28, 28), of `kinds` int64 (B,) at `centres` float32 (B, 2)."""
    grey = grey_levels(kinds, centres, antialias).to(torch.uint8)
    return grey[:, None] * _LIT[kinds][:, :, None, None]


def render_float(kinds: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """What `render` draws, divided by 255, float32 (B, 3, 28, 28) in [0, 1]; sooner than by dividing."""
    return grey_levels(kinds, centres, antialias)[:, None] / _DIVISOR[kinds][:, :, None, None]


def line_mask(kinds: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The pixels that the line lights in the 8-bit image, bool (B, 28, 28)."""
    return grey_levels(kinds, centres, antialias) > 0


def counterfactual_mask(attribute: str, kinds: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The pixels of the 8-bit image, bool (B, 28, 28), that change when the same line is drawn with another
    value of one attribute: what carries the answer to that question, black pixels among it.

    Of the angles only the two neighbours count, 15° to either side: the union over all angles is a disc.
    """
    at = attributes_of(kinds)
    values = len(ATTRIBUTES[attribute])
    image = render(kinds, centres, antialias)
    changed = torch.zeros_like(image[:, 0], dtype=torch.bool)
    for step in {1, values - 1}:
        other = kind_of({**at, attribute: (at[attribute] + step) % values})
        changed |= (render(other, centres, antialias) != image).any(dim=1)
    return changed
