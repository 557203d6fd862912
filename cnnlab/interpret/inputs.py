"""What to look at: image files and arrays from outside, or a varied choice of a test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.datamodule import BatchedDataset, sample_indices
from cnnlab.data.image_io import WRONG_RANGE, images_of, is_on_light, read_image
from cnnlab.interpret.network import batch_size, frozen_copy
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError

CANDIDATES = 2000  # random test images to choose from


@dataclass(frozen=True, repr=False)
class Inputs:
    """Images float32 (N, C, H, W) in [0, 1] with their names; {head: true class int64 (N,)} if known; notes on how each
    image was converted; and the `indices` of images of a split."""

    images: Tensor
    names: list[str]
    truth: dict[str, Tensor] | None = None
    notes: list[list[str]] = field(default_factory=list)
    indices: list[int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"Inputs({len(self)} of {size}: {', '.join(self.names[:8])}{', ...' if len(self) > 8 else ''})"


def from_split(split: BatchedDataset, indices: list[int]) -> Inputs:
    """Return images of a split. Raises `UserError` for an index beyond it."""
    beyond = [index for index in indices if not 0 <= index < len(split)]
    if beyond:
        raise UserError(f"indices: {beyond[0]} is not in 0..{len(split) - 1}, the test split")
    rows = torch.tensor(indices)
    return Inputs(split.inputs(rows), split.names(indices), split.targets(rows), indices=indices)


def target_classes(head: Head, word: str, inputs: Inputs, predicted: Tensor | None = None) -> Tensor | None:
    """Return the class of each image int64 (N,) for a target word: "predicted", the name of a class, or "true"; None if
    the head has no such class. Raises `UserError` for "true" without known classes."""
    if word == "predicted":
        return predicted
    if word == "true" and word not in head.classes:
        if inputs.truth is None:
            raise UserError("target true: the true class of an image from outside is not known")
        return inputs.truth[head.name]
    number = head.number(word)
    return None if number is None else torch.full((len(inputs),), number)


def pick(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, count: int) -> list[int]:
    """Return the indices of `count` images with the most different classes among CANDIDATES random ones. The first is
    the mistake that the network is most confident about, if it makes one."""
    if not 1 <= count <= CANDIDATES:
        raise UserError(f"{count} images: ask for 1 to {CANDIDATES:,}")
    rows = sample_indices(len(split), min(len(split), CANDIDATES))
    mistake = _surest_mistake(net, heads, split, rows)
    chosen = [] if mistake is None else [mistake]
    classes = _classes(heads, split, rows)  # (rows, parts)
    taken = _classes(heads, split, torch.tensor(chosen, dtype=torch.int64))
    while len(chosen) < min(count, len(split)):
        # How much an image differs from the chosen ones: first from the most similar, then from all.
        unlike = (classes[:, None] != taken[None]).sum(dim=2) if len(taken) else torch.zeros(len(rows), 1)
        merit = unlike.amin(dim=1) * 1000 + unlike.sum(dim=1)
        merit[torch.isin(rows, torch.tensor(chosen, dtype=torch.int64))] = -1
        best = int(merit.argmax())
        chosen.append(int(rows[best]))
        taken = torch.cat([taken, classes[best : best + 1]])
    return chosen


def _classes(heads: tuple[Head, ...], split: BatchedDataset, rows: Tensor) -> Tensor:
    """Return the classes of all heads, int64 (rows, parts); for a head with parts, the classes of the parts."""
    targets, parts = split.targets(rows), list[Tensor]()
    for head in heads:
        if head.parts:
            parts += torch.unravel_index(targets[head.name], tuple(len(part.classes) for part in head.parts))
        else:
            parts.append(targets[head.name])
    return torch.stack(parts, dim=1)


def _surest_mistake(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, searched: Tensor) -> int | None:
    surest: tuple[float, int] | None = None
    net = frozen_copy(net)
    with torch.no_grad():
        for rows in searched.split(batch_size(split.inputs(searched[:1]))):
            logits, targets = net(split.inputs(rows)), split.targets(rows)
            for head in heads:
                sure, predicted = head.probabilities(logits[head.name]).max(dim=1)
                sure = torch.where(predicted == targets[head.name], 0.0, sure)
                best = int(sure.argmax())
                if sure[best] > 0 and (surest is None or sure[best].item() > surest[0]):
                    surest = (sure[best].item(), int(rows[best]))
    return surest[1] if surest else None


def read_inputs(
    given: Any, image_shape: Sequence[int], input_type: str = "image", unreadable: dict[str, str] | None = None
) -> Inputs:
    """Convert one or many images, each as `data.image_io.read_image` takes it, to `image_shape` (C, H, W). `Inputs` and
    float tensors of this shape are kept as they are.

    Raises `UserError` for no image, or an unreadable one. With `unreadable`, {name: reason} is added there and
    the others are read.
    """
    if isinstance(given, Inputs):
        if tuple(given.images.shape[1:]) != tuple(image_shape):
            raise UserError(f"images of {tuple(given.images.shape[1:])} do not fit a network for {tuple(image_shape)}")
        return given
    images, names, notes = [], [], []
    for number, source in enumerate(images_of(given, image_shape)):
        name = str(source) if isinstance(source, Path) else f"image {number}"
        try:
            image, done = _read(source, image_shape, input_type)
        except UserError as error:
            if unreadable is None:
                raise
            unreadable[name] = str(error)
            continue
        images.append(image)
        names.append(name)
        notes.append(done)
    if not images:
        raise UserError(next(iter((unreadable or {}).values()), "there is no image"))
    short = [Path(name).name for name in names]
    return Inputs(torch.stack(images), short if len(set(short)) == len(names) else names, None, notes)


def _read(source: Any, image_shape: Sequence[int], input_type: str) -> tuple[Tensor, list[str]]:
    if isinstance(source, Tensor) and source.is_floating_point() and tuple(source.shape) == tuple(image_shape):
        if not (torch.isfinite(source).all() and 0 <= source.min() <= source.max() <= 1):
            raise UserError(WRONG_RANGE)
        pixels = source.detach().float().cpu()
        if not is_on_light((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(), input_type):
            return pixels, []
    image, notes = read_image(source, image_shape, input_type)
    return image.float() / 255, notes
