"""Data sets of lines, drawn batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.rendering import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    STYLES,
    Jitter,
    Style,
    class_id_of,
    counterfactual_ids,
    grey_levels,
    render,
)
from cnnlab.data.sampling import HOLDOUTS, MAX_JITTER, MIXED, PLACEMENTS, LineSampler
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError

RED_AND_BLUE = ("red", "blue")  # the reports' colours
MAX_PER_CLASS = 1_000_000  # images; a table of their centres takes 768 MB
TASKS = ("attributes", "class")


def line_heads(colours: Sequence[str] = RED_AND_BLUE) -> tuple[Head, ...]:
    """Return the four heads of lines in these colours."""
    return tuple(Head(name, tuple(colours) if name == "colour" else values) for name, values in ATTRIBUTES.items())


def class_head(colours: Sequence[str] = RED_AND_BLUE) -> Head:
    """Return one head for all combinations, 96 classes with two colours."""
    heads = line_heads(colours)
    parts = _combinations(heads, torch.arange(math.prod(len(head.classes) for head in heads)))
    rows = torch.stack(parts, dim=1).tolist()
    names = [" ".join(head.classes[i] for head, i in zip(heads, row, strict=True)) for row in rows]
    return Head("class", tuple(names), parts=heads)


def _combinations(heads: Sequence[Head], classes: Tensor) -> tuple[Tensor, ...]:
    """Return the class of each head, int64 (B,) each, of combinations int64 (B,)."""
    parts: tuple[Tensor, ...] = torch.unravel_index(classes, tuple(len(head.classes) for head in heads))
    return parts


class LineDataset(BatchedDataset):
    """One split: a table of centres; pixels are drawn on demand. Image i is of class i mod (number of classes). With
    `resample` any index is drawn, without a table."""

    def __init__(
        self,
        sampler: LineSampler,
        per_class: int,
        task: str = "attributes",
        resample: bool = False,
        colours: Sequence[str] = RED_AND_BLUE,
    ) -> None:
        self.sampler, self.task = sampler, task
        self.heads = line_heads(colours)
        self.classes = math.prod(len(head.classes) for head in self.heads)
        numbers = torch.tensor([list(COLOURS).index(colour) for colour in colours])
        parts = _combinations(self.heads, torch.arange(self.classes))
        self.parts = {head.name: part for head, part in zip(self.heads, parts, strict=True)}
        self.class_ids = class_id_of({**self.parts, "colour": numbers[self.parts["colour"]]})
        self.size = per_class * self.classes
        every = torch.arange(self.size)
        self.centres = None if resample else sampler.centres(every, self.class_ids_of(every))

    def __len__(self) -> int:
        return self.size

    def class_ids_of(self, indices: Tensor) -> Tensor:
        """Return the class ids int64 (B,) in [0, 144) of `indices` int64 (B,)."""
        return self.class_ids[indices % self.classes]

    def centres_of(self, indices: Tensor) -> Tensor:
        """Return the centres float32 (B, 2) of `indices` int64 (B,)."""
        if self.centres is None:
            return self.sampler.centres(indices, self.class_ids_of(indices))
        return self.centres[indices]

    def drawing(self, indices: Tensor) -> tuple[Tensor, Tensor, Style, Jitter]:
        """Return the arguments of `rendering.render` for `indices` int64 (B,): class ids, centres, style, jitter."""
        style, jitter = self.sampler.styles(indices), self.sampler.jitters(indices)
        return self.class_ids_of(indices), self.centres_of(indices), style, jitter

    def images(self, indices: Tensor) -> Tensor:
        return self.sampler.add_background(render(*self.drawing(indices)), indices)

    def counterfactuals(self, indices: Tensor, head: Head) -> Tensor:
        """Return the images with other answers to the head's question, uint8 (K, B, 3, 28, 28)."""
        class_ids, centres, style, jitter = self.drawing(indices)
        others = [
            counterfactual_ids(part.name, class_ids, [ATTRIBUTES[part.name].index(name) for name in part.classes])
            for part in head.parts or (head,)
        ]
        drawings = [render(other, centres, style, jitter) for other in torch.cat(others)]
        return torch.stack([self.sampler.add_background(drawing, indices) for drawing in drawings])

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """Return the right pixels bool (B, 28, 28): "line", the pixels of the line, and "counterfactual", the pixels
        that change with another answer."""
        changed = self.counterfactuals(indices, head) != self.images(indices)
        return {"line": grey_levels(*self.drawing(indices)) > 0, "counterfactual": changed.any(dim=2).any(dim=0)}

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        classes = indices % self.classes
        if self.task == "class":
            return {"class": classes}
        return {name: values[classes] for name, values in self.parts.items()}


class LineDataModule(ImageDataModule):
    """Lines, drawn batch by batch.

    Args:
        task: "attributes" (four heads) or "class" (one head of all their combinations).
        colours: Two or three of red, blue, green.
        train_per_class, val_per_class, test_per_class: Images of each combination.
        style, jitter, holdout, placement: See `LineSampler`; jitter applies to training lines.
        test_style: The style of test lines; None: `style`.
        resample_each_epoch: Draw new training lines every epoch.
        seed, batch_size, eval_batch_size, num_workers: See `ImageDataModule`.
    """

    image_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    input_type = "line"

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
        jitter: Mapping[str, float] | None = None,
        resample_each_epoch: bool = False,
        holdout: str = "none",
        placement: str = "anywhere",
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        styles = (*STYLES, MIXED)
        options: dict[str, tuple[str, Sequence[str]]] = {
            "task": (task, TASKS), "holdout": (holdout, HOLDOUTS), "placement": (placement, PLACEMENTS),
            "style": (style, styles),
            "test_style": (test_style or style, styles),
        }  # fmt: skip
        for name, (value, choices) in options.items():
            if value not in choices:
                raise UserError(f"data.{name}={value}: choose one of {', '.join(choices)}")
        if len(set(colours)) != len(colours) or len(colours) < 2 or not set(colours) <= set(COLOURS):
            raise UserError(f"data.colours={colours}: name two or more of {', '.join(COLOURS)}")
        self.per_class = dict(zip(self.names, (train_per_class, val_per_class, test_per_class), strict=True))
        for name, size in self.per_class.items():
            if not (0 if name == "val" else 1) <= size <= MAX_PER_CLASS:
                raise UserError(f"data.{name}_per_class={size} is too small, or above {MAX_PER_CLASS:,}")
        jitter = dict(jitter or {})
        for name, most in jitter.items():
            if not 0 <= most <= MAX_JITTER.get(name, -1):
                limits = ", ".join(f"{key} 0..{limit}" for key, limit in MAX_JITTER.items())
                raise UserError(f"data.jitter.{name}={most} is not one of {limits}")
        if placement != "anywhere" and (holdout != "none" or any(jitter.values())):
            raise UserError(f"data.placement={placement} goes with neither data.holdout nor data.jitter")
        self.heads = line_heads(colours) if task == "attributes" else (class_head(colours),)
        self.resample_each_epoch, self.task, self.colours = resample_each_epoch, task, colours
        common: dict[str, Any] = {"seed": seed, "holdout": holdout, "placement": placement}
        self.samplers = {
            "train": LineSampler(split="train", style=style, jitter=jitter, **common),
            "val": LineSampler(split="val", style=style, **common),
            "test": LineSampler(split="test", style=test_style or style, **common),
        }

    def setup(self, stage: str | None = None) -> None:
        for name in {"fit": ("train", "val"), "test": ("test",)}.get(stage or "all", self.names):
            if name not in self.splits:
                resample = self.resample_each_epoch and name == "train"
                settings = (self.per_class[name], self.task, resample, self.colours)
                self.splits[name] = LineDataset(self.samplers[name], *settings)
