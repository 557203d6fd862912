"""What is random about a line: where it lies, how it is drawn, how it differs from its class.

All of it is a function of (seed, split, index), and no image stands in two splits, unless one of the reports' own
generators is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnlab.data.datamodule import CHUNK
from cnnlab.data.hashing import hash_u64, unit
from cnnlab.data.rendering import (
    IMAGE_SIZE,
    LENGTHS,
    STYLES,
    Jitter,
    Lines,
    Style,
    attributes_of,
    centre_bounds,
    grey_levels,
)
from cnnlab.data.scenes import compose

MIXED = "mixed"  # every style of drawing, an image each
HOLDOUTS = ("none", "region")
JITTERED = {"length": 0.5, "width": 1, "angle": 7.5}  # the most that a line may differ from its class
PLACEMENTS = ("anywhere", "report_a", "report_b")

# A hash of an image's grey pixels says to which split the image belongs, and a split keeps of the
# uniformly drawn centres only those whose image is its own. So two splits can never share an image:
# not with hard pixels, where a class has only a few hundred images, and not with ever fresh ones.

_SHARES = {"train": range(0, 5), "val": range(5, 6), "test": range(6, 8)}  # of 8

# Of what is random beside the centres, whose attempts count up from 0.
_OF_STYLE = 2**32
_OF_JITTER = (2**32 + 1, 2**32 + 2, 2**32 + 3)
_OF_SCENE = 2**32 + 4

# Report B's grid: 100 places of a short line and 4 of a long one. That they are whole pixels in the middle of the
# image is assumed.
_GRID = {"short": 10, "long": 2}


# Whole numbers below 2**32: a sum of 784 products with bytes stays exact in float64.
_WEIGHTS = torch.from_numpy((hash_u64(np.arange(IMAGE_SIZE**2, dtype=np.uint64)) >> 32).astype(np.float64))


def _share(grey: Tensor) -> Tensor:
    """Which eighth of all images each of `grey` (B, 28, 28) falls in, int64 (B,) in [0, 8)."""
    sums = (grey.flatten(1).double() @ _WEIGHTS).numpy().astype(np.uint64)
    return torch.from_numpy((hash_u64(sums) >> 61).astype(np.int64))


def in_region(centres: Tensor) -> Tensor:
    """Which of `centres` (B, 2) lie in the upper right quarter of the image, bool (B,)."""
    return (centres[:, 0] > IMAGE_SIZE / 2) & (centres[:, 1] < IMAGE_SIZE / 2)


@dataclass(frozen=True)
class LineSampler:
    """What is random about the lines of a split ("train", "val", "test").

    `style` is one of `rendering.STYLES`, or "mixed", each image in one of them. `jitter` says by how much lines may
    differ from their class (see `JITTERED`). With `holdout` "region" the test split has the upper right quarter of the
    image for itself.

    `placement` is "anywhere", no image in two splits; or that of a report, whose splits are random and share images:
    "report_a", centres in the middle of any pixel from where the whole line is inside (which leaks as Report A's data
    do); "report_b", 100 such places of a short line and 4 of a long one.
    """

    seed: int
    split: str
    style: str = "antialiased"
    jitter: Mapping[str, float] = field(default_factory=dict)
    holdout: str = "none"
    placement: str = "anywhere"
    scene: str = "plain"

    def compose(self, images: Tensor, indices: Tensor) -> Tensor:
        """Lines on black, uint8 (B, 3, 28, 28), in the scenes of the images `indices` int64 (B,)."""
        return compose(self.scene, images, self._keys(indices, _OF_SCENE))

    def styles(self, indices: Tensor) -> Style:
        """How the images `indices` int64 (B,) are drawn: all in one style, or each in its own, int64 (B,)."""
        if self.style != MIXED:
            return self.style
        return torch.from_numpy(((self._keys(indices, _OF_STYLE) >> 33) % len(STYLES)).astype(np.int64))

    def jitters(self, indices: Tensor) -> Jitter:
        """How the lines `indices` int64 (B,) differ from their kind: in length and width between 1 / (1 + m) and 1 + m
        times, in angle by up to m degrees."""
        if not any(self.jitter.values()):
            return None
        drawn = torch.stack([2 * unit(self._keys(indices, place)) - 1 for place in _OF_JITTER])
        length, width, angle = (self.jitter.get(name, 0.0) for name in JITTERED)
        return torch.stack([(1 + length) ** drawn[0], (1 + width) ** drawn[1], math.radians(angle) * drawn[2]])

    def centres(self, indices: Tensor, kinds: Tensor) -> Tensor:
        """Centres float32 (B, 2) of the images `indices` int64 (B,), lines of `kinds` int64 (B,) in [0, 144): uniform
        over all places where the whole line is inside and whose image belongs to the split."""
        chunks = torch.arange(len(indices)).split(CHUNK)
        draw = self._anywhere if self.placement == "anywhere" else self._in_pixels
        return torch.cat([draw(indices[rows], kinds[rows]) for rows in chunks])

    def _keys(self, indices: Tensor, place: int) -> NDArray[np.uint64]:
        return hash_u64(self.seed, _SHARES[self.split].start, indices.numpy(), place)

    def _places(self, indices: Tensor, attempt: int) -> Tensor:
        """Numbers uniform in [0, 1), float32 (B, 2)."""
        key = self._keys(indices, attempt)
        return unit(np.stack([hash_u64(key, axis) for axis in (0, 1)], axis=1))

    def _anywhere(self, indices: Tensor, kinds: Tensor) -> Tensor:
        style, jitter = self.styles(indices), self.jitters(indices)
        low, high = centre_bounds(Lines.of_kinds(kinds, jitter), style)
        centres = torch.empty(len(indices), 2)
        share = _SHARES[self.split]
        rows, attempt = torch.arange(len(indices)), 0
        while len(rows):
            tried = low[rows] + self._places(indices[rows], attempt) * (high[rows] - low[rows])
            drawn_as = style if isinstance(style, str) else style[rows], None if jitter is None else jitter[:, rows]
            eighth = _share(grey_levels(kinds[rows], tried, *drawn_as))
            ours = (eighth >= share.start) & (eighth < share.stop)
            if self.holdout == "region":
                ours &= in_region(tried) == (self.split == "test")
            centres[rows[ours]] = tried[ours]
            rows, attempt = rows[~ours], attempt + 1
        return centres

    def _in_pixels(self, indices: Tensor, kinds: Tensor) -> Tensor:
        low, high = centre_bounds(Lines.of_kinds(kinds), self.styles(indices))
        # The first and the last pixel in whose middle a centre may lie; float32 knows a bound to a millionth.
        first, last = (low - 0.5 - 1e-4).ceil(), (high - 0.5 + 1e-4).floor()
        if self.placement == "report_b":
            places = torch.tensor([_GRID[length] for length in LENGTHS])[attributes_of(kinds)["length"]][:, None]
            first = (IMAGE_SIZE - places).div(2, rounding_mode="floor")
            last = first + places - 1
        return first + (self._places(indices, 0) * (last - first + 1)).floor() + 0.5
