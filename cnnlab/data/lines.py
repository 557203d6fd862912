"""Data sets of lines, drawn batch by batch: which kinds, at which centres, and no image in two splits
but where a report's own generator is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.draws import HOLDOUTS, JITTERED, MIXED, PLACEMENTS, LineSampler
from cnnlab.data.rendering import (
    ATTRIBUTES,
    COLOURS,
    IMAGE_SIZE,
    STYLES,
    Jitter,
    Style,
    counterfactual_kinds,
    kind_of,
    line_mask,
    render,
    render_float,
)
from cnnlab.data.scenes import SCENES
from cnnlab.errors import UserError
from cnnlab.models.heads import Head

RED_AND_BLUE = ("red", "blue")  # the reports' colours


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


class LineDataset(BatchedDataset):
    """One split: a table of centres, pixels on demand. Image i is of class i mod (number of classes).
    `resample` draws for any index, without a table."""

    def __init__(
        self,
        draws: LineSampler,
        per_class: int,
        task: str = "attributes",
        resample: bool = False,
        colours: Sequence[str] = RED_AND_BLUE,
    ) -> None:
        self.draws, self.task = draws, task
        self.heads = line_heads(colours)
        self.classes = math.prod(len(head.classes) for head in self.heads)
        numbers = torch.tensor([list(COLOURS).index(colour) for colour in colours])
        parts = _combinations(self.heads, torch.arange(self.classes))
        self.at = {head.name: part for head, part in zip(self.heads, parts, strict=True)}
        self.kinds = kind_of({**self.at, "colour": numbers[self.at["colour"]]})
        self.size = per_class * self.classes
        every = torch.arange(self.size)
        self.centres = None if resample else draws.centres(every, self.kinds_of(every))

    def __len__(self) -> int:
        return self.size

    def kinds_of(self, indices: Tensor) -> Tensor:
        """The kinds int64 (B,) in [0, 144) of `indices` int64 (B,)."""
        return self.kinds[indices % self.classes]

    def centres_of(self, indices: Tensor) -> Tensor:
        """The centres float32 (B, 2) of `indices` int64 (B,)."""
        return self.draws.centres(indices, self.kinds_of(indices)) if self.centres is None else self.centres[indices]

    def drawing(self, indices: Tensor) -> tuple[Tensor, Tensor, Style, Jitter]:
        """What is drawn of `indices` int64 (B,), as `rendering.render` takes it: kinds, centres, styles and jitter."""
        return (
            self.kinds_of(indices),
            self.centres_of(indices),
            self.draws.styles(indices),
            self.draws.jitters(indices),
        )

    def images(self, indices: Tensor) -> Tensor:
        return self.draws.compose(render(*self.drawing(indices)), indices)

    def inputs(self, indices: Tensor) -> Tensor:
        return render_float(*self.drawing(indices)) if self.draws.scene == "plain" else super().inputs(indices)

    def counterfactuals(self, indices: Tensor, head: Head) -> Tensor:
        """The same images with another answer to the head's question, uint8 (K, B, 3, 28, 28), K of each."""
        kinds, centres, style, jitter = self.drawing(indices)
        others = [
            counterfactual_kinds(part.name, kinds, [ATTRIBUTES[part.name].index(name) for name in part.classes])
            for part in head.parts or (head,)
        ]
        return torch.stack(
            [self.draws.compose(render(other, centres, style, jitter), indices) for other in torch.cat(others)]
        )

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """The true pixels of a head's answer, bool (B, 28, 28) each: the "line", and the "counterfactual", which change
        in one of its `counterfactuals`."""
        changed = self.counterfactuals(indices, head) != self.images(indices)
        return {"line": line_mask(*self.drawing(indices)), "counterfactual": changed.any(dim=2).any(dim=0)}

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        classes = indices % self.classes
        if self.task == "class":
            return {"class": classes}
        return {name: values[classes] for name, values in self.at.items()}


class LineDataModule(ImageDataModule):
    """Lines, drawn batch by batch. `task` is "attributes" (four heads) or "class" (one head of all their combinations).

    `style`, `jitter`, `holdout`, `placement` and `scene` are as in `LineSampler`; `jitter` is for training lines alone,
    and `test_style` is how those of the test are drawn, where it is another.
    """

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
        jitter: Mapping[str, float] | None = None,
        resample_each_epoch: bool = False,
        holdout: str = "none",
        placement: str = "anywhere",
        scene: str = "plain",
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        styles = (*STYLES, MIXED)
        asked = {
            "task": (task, TASKS), "holdout": (holdout, HOLDOUTS), "placement": (placement, PLACEMENTS),
            "scene": (scene, tuple(SCENES)), "style": (style, styles), "test_style": (test_style or style, styles),
        }  # fmt: skip
        for name, (value, choices) in asked.items():
            if value not in choices:
                raise UserError(f"data.{name}={value}: choose one of {', '.join(choices)}")
        if len(set(colours)) != len(colours) or len(colours) < 2 or not set(colours) <= set(COLOURS):
            raise UserError(f"data.colours={colours}: name two or more of {', '.join(COLOURS)}")
        self.per_class = dict(zip(self.names, (train_per_class, val_per_class, test_per_class), strict=True))
        for name, size in self.per_class.items():
            if not (0 if name == "val" else 1) <= size <= MOST_PER_CLASS:
                raise UserError(f"data.{name}_per_class={size} is too small, or above {MOST_PER_CLASS:,}")
        for name, most in (jitter or {}).items():
            if not 0 <= most <= JITTERED.get(name, -1):
                limits = ", ".join(f"{key} 0..{limit}" for key, limit in JITTERED.items())
                raise UserError(f"data.jitter.{name}={most} is not one of {limits}")
        self.heads = line_heads(colours) if task == "attributes" else (class_head(colours),)
        if placement != "anywhere" and (holdout != "none" or any((jitter or {}).values())):
            raise UserError(f"data.placement={placement} goes with neither data.holdout nor data.jitter")
        self.resample_each_epoch, self.task, self.colours = resample_each_epoch, task, colours
        common: dict[str, Any] = {"seed": seed, "holdout": holdout, "placement": placement}
        common["scene"] = scene
        self.draws = {
            "train": LineSampler(split="train", style=style, jitter=dict(jitter or {}), **common),
            "val": LineSampler(split="val", style=style, **common),
            "test": LineSampler(split="test", style=test_style or style, **common),
        }

    def setup(self, stage: str | None = None) -> None:
        for name in {"fit": ("train", "val"), "test": ("test",)}.get(stage or "all", self.names):
            if name not in self.splits:
                resample = self.resample_each_epoch and name == "train"
                self.splits[name] = LineDataset(
                    self.draws[name], self.per_class[name], self.task, resample, self.colours
                )
