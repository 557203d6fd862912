"""What a straight line is, and how it is drawn: 28 x 28 x 3, on black.

A line is a kind (length, width, angle, colour) and a centre. Both reports, section "line dataset"; kinds
are numbered in the order of the file names `length_width_angle_colour_id`. The reports have red and blue
lines, 96 kinds; green ones are for the question whether a trained network can learn them.
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
KINDS = math.prod(SHAPE)

ROUND_ENDS = ("capped", "capped_fitted", "brush", "brush_fitted", "soft")
Style = str | Tensor  # the name of one for all, or the number of one for each image, int64 (B,)
# How a line differs from its kind: how many times as long and as wide it is, and by how many radians it is turned
# further, float32 (3, B); None: not at all.
Jitter = Tensor | None

_PIXELS = torch.arange(IMAGE_SIZE) + 0.5  # their centres, along either axis

_AT = dict(zip(ATTRIBUTES, torch.unravel_index(torch.arange(KINDS), SHAPE), strict=True))  # of every kind, (144,) each

# Which channels a kind's colour lights, 1 or 0, uint8 (144, 3); and what makes a grey level in [0, 255] a
# value in [0, 1] there and 0 elsewhere, when divided by it.
_LIT = (torch.tensor(list(COLOURS.values()))[_AT["colour"]] // 255).to(torch.uint8)
_DIVISOR = torch.where(_LIT == 1, 255.0, math.inf)


@dataclass(frozen=True)
class Lines:
    """Straight lines of any length and width in pixels and any angle with the x-axis, counter-clockwise, by its cosine
    and sine: float32 (B,) each."""

    length: Tensor
    width: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of_kinds(cls, kinds: Tensor, jitter: Jitter = None) -> Lines:
        """The lines of `kinds` int64 (B,) in [0, 144), as their kind says or with `jitter`."""
        lines = _EVERY[kinds]
        if jitter is None:
            return lines
        longer, wider, turn = jitter
        return replace(lines, length=lines.length * longer, width=lines.width * wider).turned(turn)

    def turned(self, radians: Tensor) -> Lines:
        """The lines turned counter-clockwise by float32 (B,) or ()."""
        cos, sin = radians.cos(), radians.sin()
        return replace(self, cos=self.cos * cos - self.sin * sin, sin=self.sin * cos + self.cos * sin)

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: Tensor) -> Lines:
        return Lines(self.length[rows], self.width[rows], self.cos[rows], self.sin[rows])

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """What x and y, from the centre and y down, each add to the place along the line and to that across it,
        (2, 2, B); and half of the line's length and width, (2, B)."""
        turn = torch.stack([torch.stack([self.cos, -self.sin]), torch.stack([-self.sin, -self.cos])])
        return turn, torch.stack([self.length, self.width]) / 2


_EVERY = Lines(
    torch.tensor(list(LENGTHS.values()))[_AT["length"]],
    torch.tensor(list(WIDTHS.values()))[_AT["width"]],
    torch.tensor([math.cos(angle) for angle in ANGLES.values()])[_AT["angle"]],
    torch.tensor([math.sin(angle) for angle in ANGLES.values()])[_AT["angle"]],
)


def attributes_of(kinds: Tensor) -> dict[str, Tensor]:
    """{attribute: int64 (B,)} of kinds int64 (B,) in [0, 144)."""
    return {name: values[kinds] for name, values in _AT.items()}


def kind_of(attributes: dict[str, Tensor]) -> Tensor:
    """Class numbers int64 (B,) in [0, 144) of {attribute: int64 (B,)}; the inverse of `attributes_of`."""
    kinds = torch.zeros_like(attributes["length"])
    for name, values in ATTRIBUTES.items():
        kinds = kinds * len(values) + attributes[name]
    return kinds


def centre_bounds(lines: Lines, style: Style = "antialiased") -> tuple[Tensor, Tensor]:
    """Lowest and highest (x, y) in pixels, float32 (B, 2) each, of a centre whose whole line is inside. Of literal
    lines the end points are inside, of soft ones the half of the brightness; what is beyond may be cut by the image's
    edge."""
    cos, sin = lines.cos.abs(), lines.sin.abs()
    numbers = torch.tensor(STYLES.index(style)) if isinstance(style, str) else style
    round_ends = torch.isin(numbers, torch.tensor([STYLES.index(name) for name in ROUND_ENDS])).expand(len(lines))
    across_x, across_y = (torch.where(round_ends, 1.0, slope) for slope in (sin, cos))
    reach = [lines.length * cos + lines.width * across_x, lines.length * sin + lines.width * across_y]
    half = torch.stack(reach, dim=1) / 2
    return half, IMAGE_SIZE - half


def coverage(lines: Lines, centres: Tensor, style: Style = "antialiased") -> Tensor:
    """How much of each pixel the line covers, float32 (B, 28, 28) in [0, 1].

    `centres` float32 (B, 2), (x, y) in pixels from the top left corner, y down; `style` one of `STYLES` for all, or the
    number of one for each, int64 (B,).
    """
    if isinstance(style, Tensor):
        drawn = torch.empty(len(lines), IMAGE_SIZE, IMAGE_SIZE)
        for number in style.unique().tolist():
            rows = style == number
            drawn[rows] = _DRAW[STYLES[number]](lines[rows], centres[rows])
        return drawn
    return _DRAW[style](lines, centres)


def _inside(box: tuple[Tensor, Tensor], centres: Tensor) -> Tensor:
    """How far inside the edges of its box (see `Lines.box`) each pixel's centre is, along and across the line,
    (2, B, 28, 28): in place and in few passes."""
    turn, half = box
    of_x, of_y = (turn[..., None] * (_PIXELS - centres.T[:, None, :, None])).unbind()  # (2, B, 28)
    inside = of_x[:, :, None, :] + of_y[:, :, :, None]
    return torch.sub(half[..., None, None], inside.abs_(), out=inside)


def _antialiased(lines: Lines, centres: Tensor) -> Tensor:
    """By the signed distance of the pixel's centre to the box's edges: coverage falls from 1 to 0 over one pixel, and
    is the exact area for an upright line."""
    along, across = _inside(lines.box, centres).add_(0.5).clamp_(0, 1).unbind()
    return along.mul_(across)


def _hard(lines: Lines, centres: Tensor) -> Tensor:
    """A pixel is on where its centre is in the box."""
    return (_inside(lines.box, centres) >= 0).all(dim=0).float()


def _supersampled(lines: Lines, centres: Tensor) -> Tensor:
    """The share of 4 x 4 points of the pixel that are in the box: its area, nearly."""
    places = (torch.arange(4) - 1.5) / 4
    drawn = sum(_hard(lines, centres + torch.stack([x, y])) for x in places for y in places)
    assert isinstance(drawn, Tensor)
    return drawn / 16


def _snapped(lines: Lines, centres: Tensor) -> tuple[Lines, Tensor]:
    """The lines from the middle of the pixel of one end point to that of the other, and their centres."""
    reach = torch.stack([lines.cos, -lines.sin], dim=1) * lines.length[:, None] / 2
    first, last = ((centres + sign * reach).floor().clamp(0, IMAGE_SIZE - 1) + 0.5 for sign in (-1, 1))
    length = (last - first).norm(dim=1)
    x, y = ((last - first) / length[:, None]).unbind(dim=1)
    one = length == 0  # both end points in one pixel: it keeps its direction
    cos, sin = torch.where(one, lines.cos, x), torch.where(one, lines.sin, -y)
    return Lines(length, lines.width, cos, sin), (first + last) / 2


def _literal(lines: Lines, centres: Tensor) -> Tensor:
    """Hard pixels from the pixel of one end point to that of the other, both included, as a program draws that takes
    whole numbers: the line is up to a pixel longer, and turned a little."""
    snapped, middle = _snapped(lines, centres)
    return (_inside(replace(snapped, length=snapped.length + 1).box, middle) >= -1e-4).all(dim=0).float()


def _capped(lines: Lines, centres: Tensor) -> Tensor:
    """Anti-aliased, with round caps beyond the end points, half as long as the line is wide."""
    return (_inside_caps(lines, centres) + 0.5).clamp(0, 1)


def _capped_fitted(lines: Lines, centres: Tensor) -> Tensor:
    """Capped, and as long as it should be from one round end to the other."""
    return _capped(_fitted(lines), centres)


def _brush(lines: Lines, centres: Tensor) -> Tensor:
    """Hard pixels where a round brush, as wide as the line, goes from the pixel of one end point to the other's."""
    return (_inside_caps(*_snapped(lines, centres)) >= -1e-4).float()


def _brush_fitted(lines: Lines, centres: Tensor) -> Tensor:
    """A brush, and from one round end to the other as long as it should be, about."""
    return _brush(_fitted(lines), centres)


def _fitted(lines: Lines) -> Lines:
    """Their end points moved in by the caps that will be put on them, but for a pixel between them."""
    return replace(lines, length=(lines.length - lines.width).clamp(min=1))


def _pointed(lines: Lines, centres: Tensor) -> Tensor:
    """Anti-aliased, and as long as it should be from one tip to the other: both sides taper at 45° to either end."""
    beside, across = _inside(lines.box, centres).unbind()
    tip = (beside + across - lines.width[:, None, None] / 2) / math.sqrt(2)
    return torch.minimum(across, tip).add_(0.5).clamp_(0, 1)


def _soft(lines: Lines, centres: Tensor) -> Tensor:
    """Capped and fitted, and out of focus: brightness falls by a third a pixel, from 1 where it is three wide and from
    less in thinner lines, which have more light than their width."""
    return _inside_caps(_fitted(lines), centres).div_(3).add_(0.5).clamp_(0, 1)


def _inside_caps(lines: Lines, centres: Tensor) -> Tensor:
    """How far inside the edge of a line with round caps each pixel's centre is, (B, 28, 28)."""
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
    "capped_fitted": _capped_fitted,
    "brush": _brush,
    "brush_fitted": _brush_fitted,
    "pointed": _pointed,
    "soft": _soft,
}
STYLES = tuple(_DRAW)


def grey_levels(kinds: Tensor, centres: Tensor, style: Style, jitter: Jitter = None) -> Tensor:
    """`coverage` in whole steps of 1/255, as float32 (B, 28, 28) in [0, 255]."""
    return coverage(Lines.of_kinds(kinds, jitter), centres, style).mul_(255).round_()


def render(kinds: Tensor, centres: Tensor, style: Style = "antialiased", jitter: Jitter = None) -> Tensor:
    """The 8-bit images, uint8 (B, 3, 28, 28), of `kinds` int64 (B,) at `centres` float32 (B, 2)."""
    grey = grey_levels(kinds, centres, style, jitter).to(torch.uint8)
    return grey[:, None] * _LIT[kinds][:, :, None, None]


def render_float(kinds: Tensor, centres: Tensor, style: Style = "antialiased", jitter: Jitter = None) -> Tensor:
    """What `render` draws, divided by 255, float32 (B, 3, 28, 28) in [0, 1]; sooner than by dividing."""
    return grey_levels(kinds, centres, style, jitter)[:, None] / _DIVISOR[kinds][:, :, None, None]


def line_mask(kinds: Tensor, centres: Tensor, style: Style = "antialiased", jitter: Jitter = None) -> Tensor:
    """The pixels that the line lights in the 8-bit image, bool (B, 28, 28)."""
    return grey_levels(kinds, centres, style, jitter) > 0


def counterfactual_kinds(attribute: str, kinds: Tensor, values: Sequence[int] | None = None) -> Tensor:
    """The same lines with another value of one attribute, kinds int64 (K, B): with every other one of `values`, None:
    of all values, but of more than three only with the two neighbours, of the angles 15° to either side: the pixels of
    all angles together are a disc."""
    at = attributes_of(kinds)
    known = torch.arange(len(ATTRIBUTES[attribute])) if values is None else torch.tensor(values)
    place = (at[attribute][:, None] == known).long().argmax(dim=1)
    steps = sorted({1, len(known) - 1})
    return torch.stack([kind_of({**at, attribute: known[(place + step) % len(known)]}) for step in steps])


def counterfactual_mask(
    attribute: str, kinds: Tensor, centres: Tensor, style: Style = "antialiased", jitter: Jitter = None
) -> Tensor:
    """The pixels of the 8-bit image, bool (B, 28, 28), that change when the same line is drawn with another value of
    one attribute (see `counterfactual_kinds`): what carries the answer to that question, black pixels among it."""
    image = render(kinds, centres, style, jitter)
    others = [render(other, centres, style, jitter) for other in counterfactual_kinds(attribute, kinds)]
    return (torch.stack(others) != image).any(dim=2).any(dim=0)
