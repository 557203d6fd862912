"""Random places, styles and variations of lines, as functions of (seed, split, index).

A hash of its pixels decides which split an image belongs to. A split keeps only centres with images that belong to it.
So no image can be in two splits, even when new lines are drawn every epoch. The reports' own placements do not do this.
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
from cnnlab.data.hashing import hash_u64, to_uniform
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

MIXED = "mixed"  # a random style per image
HOLDOUTS = ("none", "region")
MAX_JITTER = {"length": 0.5, "width": 1, "angle": 7.5}
PLACEMENTS = ("anywhere", "report_a", "report_b")

_SHARES = {"train": range(0, 5), "val": range(5, 6), "test": range(6, 8)}  # of 8

# Numbers of the random streams; attempts at a centre count up from 0.
_STYLE_STREAM = 2**32
_JITTER_STREAMS = (2**32 + 1, 2**32 + 2, 2**32 + 3)

# Report B's grid: 100 places of a short line and 4 of a long one, taken for whole pixels in the middle of the image.
_GRID = {"short": 10, "long": 2}

# Whole numbers below 2**32: a sum of 784 products with bytes is exact in float64.
_WEIGHTS = torch.from_numpy((hash_u64(np.arange(IMAGE_SIZE**2, dtype=np.uint64)) >> 32).astype(np.float64))


def _share(grey: Tensor) -> Tensor:
    """Return the eighth of all images that each of `grey` (B, 28, 28) falls in, int64 (B,) in [0, 8)."""
    sums = (grey.flatten(1).double() @ _WEIGHTS).numpy().astype(np.uint64)
    return torch.from_numpy((hash_u64(sums) >> 61).astype(np.int64))


def in_region(centres: Tensor) -> Tensor:
    """Return which of `centres` (B, 2) lie in the upper right quarter of the image, bool (B,)."""
    return (centres[:, 0] > IMAGE_SIZE / 2) & (centres[:, 1] < IMAGE_SIZE / 2)


@dataclass(frozen=True)
class LineSampler:
    """Draws the random parts of the lines of a split ("train", "val", "test").

    `style` is one of `rendering.STYLES`, or "mixed", a random one per image. `jitter` is how far lines may differ from
    their class (see `MAX_JITTER`). With `holdout` "region" only test lines lie in the upper right quarter. `placement`
    is "anywhere" or a report's, with splits that share images: "report_a", any pixel centre that keeps the line inside;
    "report_b", 100 places of a short line and 4 of a long one.
    """

    seed: int
    split: str
    style: str = "antialiased"
    jitter: Mapping[str, float] = field(default_factory=dict)
    holdout: str = "none"
    placement: str = "anywhere"

    def add_background(self, images: Tensor, indices: Tensor) -> Tensor:
        """Return lines on black, uint8 (B, 3, 28, 28), on their backgrounds: unchanged; a subclass has others."""
        return images

    def styles(self, indices: Tensor) -> Style:
        """Return the style of the images `indices` int64 (B,): one for all, or a number each, int64 (B,)."""
        if self.style != MIXED:
            return self.style
        return torch.from_numpy(((self._keys(indices, _STYLE_STREAM) >> 33) % len(STYLES)).astype(np.int64))

    def jitters(self, indices: Tensor) -> Jitter:
        """Return how the lines `indices` int64 (B,) differ from their class: length and width by factors between
        1 / (1 + m) and 1 + m, the angle by up to m degrees."""
        if not any(self.jitter.values()):
            return None
        draws = torch.stack([2 * to_uniform(self._keys(indices, stream)) - 1 for stream in _JITTER_STREAMS])
        length, width, angle = (self.jitter.get(name, 0.0) for name in MAX_JITTER)
        return torch.stack([(1 + length) ** draws[0], (1 + width) ** draws[1], math.radians(angle) * draws[2]])

    def centres(self, indices: Tensor, class_ids: Tensor) -> Tensor:
        """Return centres float32 (B, 2) of the images `indices` int64 (B,) of `class_ids` int64 (B,) in [0, 144):
        uniform over all places that keep the line inside and belong to the split."""
        chunks = torch.arange(len(indices)).split(CHUNK)
        draw = self._anywhere if self.placement == "anywhere" else self._in_pixels
        return torch.cat([draw(indices[rows], class_ids[rows]) for rows in chunks])

    def _keys(self, indices: Tensor, stream: int) -> NDArray[np.uint64]:
        return hash_u64(self.seed, _SHARES[self.split].start, indices.numpy(), stream)

    def _places(self, indices: Tensor, attempt: int) -> Tensor:
        """Return numbers uniform in [0, 1), float32 (B, 2)."""
        key = self._keys(indices, attempt)
        return to_uniform(np.stack([hash_u64(key, axis) for axis in (0, 1)], axis=1))

    def _anywhere(self, indices: Tensor, class_ids: Tensor) -> Tensor:
        style, jitter = self.styles(indices), self.jitters(indices)
        low, high = centre_bounds(Lines.from_class_ids(class_ids, jitter), style)
        centres, share = torch.empty(len(indices), 2), _SHARES[self.split]
        rows, attempt = torch.arange(len(indices)), 0
        while len(rows):
            tried = low[rows] + self._places(indices[rows], attempt) * (high[rows] - low[rows])
            drawn_as = style if isinstance(style, str) else style[rows], None if jitter is None else jitter[:, rows]
            eighth = _share(grey_levels(class_ids[rows], tried, *drawn_as))
            ours = (eighth >= share.start) & (eighth < share.stop)
            if self.holdout == "region":
                ours &= in_region(tried) == (self.split == "test")
            centres[rows[ours]] = tried[ours]
            rows, attempt = rows[~ours], attempt + 1
        return centres

    def _in_pixels(self, indices: Tensor, class_ids: Tensor) -> Tensor:
        low, high = centre_bounds(Lines.from_class_ids(class_ids), self.styles(indices))
        # The first and last pixel that may be a line's centre; float32 knows a bound to a millionth.
        first, last = (low - 0.5 - 1e-4).ceil(), (high - 0.5 + 1e-4).floor()
        if self.placement == "report_b":
            places = torch.tensor([_GRID[length] for length in LENGTHS])[attributes_of(class_ids)["length"]][:, None]
            first = (IMAGE_SIZE - places).div(2, rounding_mode="floor")
            last = first + places - 1
        return first + (self._places(indices, 0) * (last - first + 1)).floor() + 0.5
