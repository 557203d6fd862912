"""Data sets of lines, drawn batch by batch: which kinds, at which centres, and no image in two splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnlab.data.datamodule import CHUNK, BatchedDataset, ImageDataModule
from cnnlab.data.rendering import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    STYLES,
    Style,
    centre_bounds,
    counterfactual_mask,
    grey_levels,
    kind_of,
    line_mask,
    render,
    render_float,
)
from cnnlab.errors import UserError
from cnnlab.models.heads import Head

RED_AND_BLUE = ("red", "blue")  # the reports' colours
HOLDOUTS = ("none", "region")
MIXED = "mixed"  # every style of drawing, an image each


def line_heads(colours: Sequence[str] = RED_AND_BLUE) -> tuple[Head, ...]:
    """The four heads of lines in these colours."""
    return tuple(Head(name, tuple(colours) if name == "colour" else values) for name, values in ATTRIBUTES.items())


def class_head(colours: Sequence[str] = RED_AND_BLUE) -> Head:
    """One head whose classes are all combinations, 96 of them with two colours."""
    heads = line_heads(colours)
    at = _combinations(heads, torch.arange(math.prod(len(head.classes) for head in heads)))
    names = [
        " ".join(head.classes[i] for head, i in zip(heads, row, strict=True)) for row in torch.stack(at, dim=1).tolist()
    ]
    return Head("class", tuple(names), parts=heads)


def _combinations(heads: Sequence[Head], classes: Tensor) -> tuple[Tensor, ...]:
    """The class of each head, int64 (B,) each, of the numbers int64 (B,) of their combinations."""
    parts: tuple[Tensor, ...] = torch.unravel_index(classes, tuple(len(head.classes) for head in heads))
    return parts


MOST_PER_CLASS = 1_000_000  # images; a table of their centres takes 768 MB
TASKS = ("attributes", "class")


# --- Which centres: a pure function of (seed, split, index), and no image in two splits ---------------
#
# A hash of an image's grey pixels says to which split the image belongs, and a split keeps of the
# uniformly drawn centres only those whose image is its own. So two splits can never share an image:
# not with hard pixels, where a class has only a few hundred images, and not with ever fresh ones.

_SHARES = {"train": range(0, 5), "val": range(5, 6), "test": range(6, 8)}  # of 8


def _hash(*words: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """Independent uniform 64-bit numbers, one for each row of `words` (splitmix64, Steele et al. 2014)."""
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


# Whole numbers below 2**32: a sum of 784 products with bytes stays exact in float64.
_WEIGHTS = torch.from_numpy((_hash(np.arange(IMAGE_SIZE**2, dtype=np.uint64)) >> 32).astype(np.float64))


def _share(grey: Tensor) -> Tensor:
    """Which eighth of all images each of `grey` (B, 28, 28) falls in, int64 (B,) in [0, 8)."""
    sums = (grey.flatten(1).double() @ _WEIGHTS).numpy().astype(np.uint64)
    return torch.from_numpy((_hash(sums) >> 61).astype(np.int64))


def draw_centres(
    seed: int, split: str, indices: Tensor, kinds: Tensor, style: Style = "antialiased", holdout: str = "none"
) -> Tensor:
    """Centres float32 (B, 2) of the images `indices` int64 (B,) of a split ("train", "val", "test"), lines of
    `kinds` int64 (B,) in [0, 144).

    A centre is uniform over all places where the whole line is inside and whose image belongs to the
    split. With `holdout` "region" the test split has the upper right quarter of the image for itself.
    """
    chunks = torch.arange(len(indices)).split(CHUNK)
    styles = [style if isinstance(style, str) else style[rows] for rows in chunks]
    drawn = zip(chunks, styles, strict=True)
    return torch.cat([_draw(seed, split, indices[rows], kinds[rows], own, holdout) for rows, own in drawn])


def styles_of(seed: int, split: str, indices: Tensor, style: str) -> Style:
    """How the images `indices` int64 (B,) of a split are drawn: all in a `style`, or "mixed", each in one of `STYLES`,
    int64 (B,), a function of (seed, split, index)."""
    if style != MIXED:
        return style
    # No attempt to draw a centre has the number 2**32.
    drawn = _hash(seed, _SHARES[split].start, indices.numpy(), 2**32) >> 33
    return torch.from_numpy((drawn % len(STYLES)).astype(np.int64))


def _draw(seed: int, split: str, indices: Tensor, kinds: Tensor, style: Style, holdout: str) -> Tensor:
    low, high = centre_bounds(kinds, style)
    centres = torch.empty(len(indices), 2)
    share = _SHARES[split]
    rows, attempt = torch.arange(len(indices)), 0
    while len(rows):
        key = _hash(seed, share.start, indices[rows].numpy(), attempt)
        unit = np.stack([_hash(key, axis) >> 40 for axis in (0, 1)], axis=1).astype(np.float32) / 2**24
        tried = low[rows] + torch.from_numpy(unit) * (high[rows] - low[rows])
        eighth = _share(grey_levels(kinds[rows], tried, style if isinstance(style, str) else style[rows]))
        ours = (eighth >= share.start) & (eighth < share.stop)
        if holdout == "region":
            ours &= in_region(tried) == (split == "test")
        centres[rows[ours]] = tried[ours]
        rows, attempt = rows[~ours], attempt + 1
    return centres


def in_region(centres: Tensor) -> Tensor:
    """Which of `centres` (B, 2) lie in the upper right quarter of the image, bool (B,)."""
    return (centres[:, 0] > IMAGE_SIZE / 2) & (centres[:, 1] < IMAGE_SIZE / 2)


class LineDataset(BatchedDataset):
    """One split: a table of centres, pixels on demand. Image i is of class i mod (number of classes).
    `resample` draws for any index, without a table."""

    def __init__(
        self,
        seed: int,
        name: str,
        per_class: int,
        task: str = "attributes",
        style: str = "antialiased",
        resample: bool = False,
        colours: Sequence[str] = RED_AND_BLUE,
        holdout: str = "none",
    ) -> None:
        self.seed, self.name, self.task = seed, name, task
        self.style, self.holdout = style, holdout
        self.heads = line_heads(colours)
        self.classes = math.prod(len(head.classes) for head in self.heads)
        numbers = torch.tensor([list(COLOURS).index(colour) for colour in colours])
        parts = _combinations(self.heads, torch.arange(self.classes))
        self.at = {head.name: part for head, part in zip(self.heads, parts, strict=True)}
        self.kinds = kind_of({**self.at, "colour": numbers[self.at["colour"]]})
        self.size = per_class * self.classes
        self.centres = None if resample else self._drawn(torch.arange(self.size))

    def __len__(self) -> int:
        return self.size

    def _drawn(self, indices: Tensor) -> Tensor:
        return draw_centres(
            self.seed, self.name, indices, self.kinds_of(indices), self.styles_of(indices), self.holdout
        )

    def styles_of(self, indices: Tensor) -> Style:
        """How `indices` int64 (B,) are drawn."""
        return styles_of(self.seed, self.name, indices, self.style)

    def kinds_of(self, indices: Tensor) -> Tensor:
        """The kinds int64 (B,) in [0, 144) of `indices` int64 (B,)."""
        return self.kinds[indices % self.classes]

    def centres_of(self, indices: Tensor) -> Tensor:
        """The centres float32 (B, 2) of `indices` int64 (B,)."""
        return self._drawn(indices) if self.centres is None else self.centres[indices]

    def images(self, indices: Tensor) -> Tensor:
        return render(self.kinds_of(indices), self.centres_of(indices), self.styles_of(indices))

    def inputs(self, indices: Tensor) -> Tensor:
        return render_float(self.kinds_of(indices), self.centres_of(indices), self.styles_of(indices))

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """The true pixels of a head's answer, bool (B, 28, 28) each: the "line", and the "counterfactual" of
        the head's attribute (of all attributes, where the head is their product)."""
        kinds, centres, style = self.kinds_of(indices), self.centres_of(indices), self.styles_of(indices)
        masks = [counterfactual_mask(part.name, kinds, centres, style) for part in head.parts or (head,)]
        line = line_mask(kinds, centres, style)
        return {"line": line, "counterfactual": torch.stack(masks).any(dim=0)}

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        classes = indices % self.classes
        if self.task == "class":
            return {"class": classes}
        return {name: values[classes] for name, values in self.at.items()}


class LineDataModule(ImageDataModule):
    """Lines, drawn batch by batch. `task` is "attributes" (four heads) or "class" (one head of all their
    combinations); `style` is how they are drawn, one of `rendering.STYLES` or "mixed", and `test_style` how those of
    the test are, where it is another; `holdout` is "none", or "region" for test lines in a part of the image where no
    other line is centred."""

    image_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    expects = "line"

    def __init__(
        self,
        seed: int = 0,
        task: str = "attributes",
        colours: Sequence[str] = RED_AND_BLUE,
        train_per_class: int = 750,
        val_per_class: int = 100,
        test_per_class: int = 250,
        batch_size: int = 256,
        eval_batch_size: int = 500,
        style: str = "antialiased",
        test_style: str | None = None,
        resample_each_epoch: bool = False,
        holdout: str = "none",
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        styles = (*STYLES, MIXED)
        asked = {"task": (task, TASKS), "holdout": (holdout, HOLDOUTS), "style": (style, styles)}
        for name, (value, choices) in {**asked, "test_style": (test_style or style, styles)}.items():
            if value not in choices:
                raise UserError(f"data.{name}={value}: choose one of {', '.join(choices)}")
        if len(set(colours)) != len(colours) or len(colours) < 2 or not set(colours) <= set(COLOURS):
            raise UserError(f"data.colours={colours}: name two or more of {', '.join(COLOURS)}")
        self.per_class = dict(zip(self.names, (train_per_class, val_per_class, test_per_class), strict=True))
        for name, size in self.per_class.items():
            if not (0 if name == "val" else 1) <= size <= MOST_PER_CLASS:
                raise UserError(f"data.{name}_per_class={size} is too small, or above {MOST_PER_CLASS:,}")
        self.heads = line_heads(colours) if task == "attributes" else (class_head(colours),)
        self.resample_each_epoch = resample_each_epoch
        self.settings: dict[str, Any] = {
            "seed": seed, "task": task, "colours": colours, "holdout": holdout,
        }  # fmt: skip
        self.styles = {"train": style, "val": style, "test": test_style or style}

    def setup(self, stage: str | None = None) -> None:
        for name in {"fit": ("train", "val"), "test": ("test",)}.get(stage or "all", self.names):
            if name not in self.splits:
                resample = self.resample_each_epoch and name == "train"
                size = self.per_class[name]
                self.splits[name] = LineDataset(
                    name=name, per_class=size, resample=resample, style=self.styles[name], **self.settings
                )
