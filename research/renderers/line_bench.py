"""A bench of lines: the same ones drawn by us and by others, longer, wider, between the angles, dim, on grey and noisy.
And a reader without learning, by image moments, which says how much such images still tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cnnlab.data.rendering import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    LENGTHS,
    NUM_CLASSES,
    STYLES,
    WIDTHS,
    Lines,
    attributes_of,
    centre_bounds,
    coverage,
)
from research.renderers.external import available, external_coverage

OURS, OTHERS, PLACES = "drawn by cnnlab", "drawn by others", "at another place"
SHAPES, LIGHT = "a little unlike their class", "in another light"


@dataclass(frozen=True)
class Variation:
    """One way to draw the lines of the bench: `images` float32 (B, 3, 28, 28) in [0, 1]."""

    group: str
    name: str
    images: Tensor


@dataclass(frozen=True)
class LineBench:
    """Lines of every kind in some colours, `per_kind` of each: `kinds` int64 (B,), at random `centres` float32 (B, 2)
    where the line is inside, with room for round caps."""

    class_ids: Tensor
    centres: Tensor
    seed: int = 0

    @classmethod
    def draw(cls, per_kind: int, colours: Sequence[str], seed: int = 0) -> LineBench:
        every = torch.arange(NUM_CLASSES)
        known = torch.tensor([list(COLOURS).index(name) for name in colours])
        class_ids = every[torch.isin(attributes_of(every)["colour"], known)].repeat(per_kind)
        low, high = centre_bounds(Lines.from_class_ids(class_ids), "capped")
        unit = torch.rand(len(class_ids), 2, generator=torch.Generator().manual_seed(seed))
        return cls(class_ids, low + unit * (high - low), seed)

    @property
    def truth(self) -> dict[str, Tensor]:
        """{attribute: int64 (B,)}, numbers in `rendering.ATTRIBUTES`."""
        return attributes_of(self.class_ids)

    def variations(self) -> Iterator[Variation]:
        """Every variation, one after another."""
        lines, centres = Lines.from_class_ids(self.class_ids), self.centres
        for style in STYLES:
            yield Variation(OURS, style, self._lit(coverage(lines, centres, style)))
        for name in available():
            yield Variation(OTHERS, name, self._lit(external_coverage(name, lines, centres)))
        low, high = centre_bounds(lines, "capped")
        middle = IMAGE_SIZE / 2
        share = (centres - low) / (high - low)
        corner = torch.stack(
            [middle + share[:, 0] * (high[:, 0] - middle), low[:, 1] + share[:, 1] * (middle - low[:, 1])]
        )
        yield Variation(PLACES, "upper right quarter", self._lit(coverage(lines, corner.T)))
        for name, other in _shapes(lines).items():
            yield Variation(SHAPES, name, self._lit(coverage(other, centres)))
        drawn = self._lit(coverage(lines, centres))
        noise = partial(torch.randn, generator=torch.Generator().manual_seed(self.seed))
        for name, light in _lights(noise).items():
            yield Variation(LIGHT, name, light(drawn))

    def _lit(self, drawn: Tensor) -> Tensor:
        """Coverage float32 (B, 28, 28) in the lines' colours, 8-bit levels in [0, 1]."""
        colours = torch.tensor(list(COLOURS.values())) / 255
        return (drawn * 255).round()[:, None] / 255 * colours[self.truth["colour"]][:, :, None, None]


def _shapes(lines: Lines) -> dict[str, Lines]:
    """Lines that are not quite of their class, and nearest to it."""
    turn = torch.deg2rad(torch.tensor(5.0))
    return {
        "2 pixels shorter": replace(lines, length=lines.length - 2),
        "2 pixels longer": replace(lines, length=lines.length + 2),
        "half as wide again": replace(lines, width=lines.width * 1.5),
        "three quarters as wide": replace(lines, width=lines.width * 0.75),
        "turned by 5°": lines.turned(turn),
        "turned by -5°": lines.turned(-turn),
    }


def _lights(noise: Callable[..., Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """How bright line and ground are: functions of images (B, 3, 28, 28) on black."""

    def dim(share: float, images: Tensor) -> Tensor:
        return images * share

    def ground(level: float, images: Tensor) -> Tensor:
        return images + level * (1 - images.amax(dim=1, keepdim=True))

    def noisy(deviation: float, images: Tensor) -> Tensor:
        return (images + deviation * noise(images.shape)).clamp(0, 1)

    return {
        "half as bright": partial(dim, 0.5),
        "a quarter as bright": partial(dim, 0.25),
        "on dark grey (0.1)": partial(ground, 0.1),
        "on grey (0.3)": partial(ground, 0.3),
        "noise, deviation 0.05": partial(noisy, 0.05),
        "noise, deviation 0.15": partial(noisy, 0.15),
    }


def moments_baseline(images: Tensor) -> dict[str, Tensor]:
    """Length, width, angle and colour, {attribute: int64 (B,)}, of lines float32 (B, 3, 28, 28), without learning.

    The ground, the median of each channel, is taken away, and whatever differs from it by no more than noise does. What
    is left has the second moments of a box: 12 times the larger one is its length squared, 12 times the smaller one its
    width squared, and their axis is its angle. A soft thin line and a jagged one are wider by moments or by area (over
    length and brightness): the mean of both is taken. Lengths and widths are told apart half way; the colour is the
    channel that is lit most.
    """
    flat = images.flatten(2).double()
    ink = flat - flat.median(dim=2, keepdim=True).values
    spread = ink.abs().flatten(1).quantile(0.75, dim=1) / 0.6745  # of noise, which black cuts off below
    ink = torch.where(ink > 4.5 * spread[:, None, None], ink, 0.0)
    grey = ink.amax(dim=1).view(-1, IMAGE_SIZE, IMAGE_SIZE)
    mass = grey.sum(dim=(1, 2)).clamp(min=1e-9)
    places = torch.arange(IMAGE_SIZE, dtype=torch.float64)
    x = places - ((grey.sum(dim=1) * places).sum(dim=1) / mass)[:, None]
    y = ((grey.sum(dim=2) * places).sum(dim=1) / mass)[:, None] - places  # y up
    xx = (grey.sum(dim=1) * x**2).sum(dim=1) / mass
    yy = (grey.sum(dim=2) * y**2).sum(dim=1) / mass
    xy = torch.einsum("bij,bi,bj->b", grey, y, x) / mass
    middle, reach = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    length, width = (12 * (middle + reach)).sqrt(), (12 * (middle - reach)).clamp(min=0).sqrt()
    width = (width + mass / length.clamp(min=1) / grey.amax(dim=(1, 2)).clamp(min=1e-9)) / 2
    degrees = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
    step = 180 / len(ATTRIBUTES["angle"])
    return {
        "length": (length > sum(LENGTHS.values()) / 2).long(),
        "width": (width > sum(WIDTHS.values()) / 2).long(),
        "angle": (degrees / step).round().long() % len(ATTRIBUTES["angle"]),
        "colour": torch.tensor([0, 2, 1])[ink.sum(dim=2).argmax(dim=1)],  # red, blue, green by channel
    }
