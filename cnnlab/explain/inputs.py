"""Which images are explained: image files from outside, or images of the test split that a person would
pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.datamodule import BatchedDataset, sample_indices
from cnnlab.data.outside import WRONG_RANGE, images_of, is_on_light, read_image
from cnnlab.errors import UserError
from cnnlab.explain.network import frozen_copy
from cnnlab.models.heads import Head

CANDIDATES = 2000  # random test images among which those that differ most are looked for


@dataclass(frozen=True, repr=False)
class Inputs:
    """Images float32 (N, C, H, W) in [0, 1], a name for each, {head: true class int64 (N,)} where it is known, notes on
    what was done to each image from outside, and the `indices` of those of a split."""

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
    """Images of a split. Raises `UserError` for an index beyond it."""
    beyond = [index for index in indices if not 0 <= index < len(split)]
    if beyond:
        raise UserError(f"indices: {beyond[0]} is not in 0..{len(split) - 1}, the test split")
    rows = torch.tensor(indices)
    return Inputs(
        split.inputs(rows), [f"test image {index}" for index in indices], split.targets(rows), indices=indices
    )


def pick(
    net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, count: int, searched: int | None = None
) -> list[int]:
    """Indices of `count` images that differ most in their classes, in order; where the network errs on any of
    `searched` random ones (None: of all), the first is the mistake that it is surest of."""
    if not 1 <= count <= CANDIDATES:
        raise UserError(f"{count} images: ask for 1 to {CANDIDATES:,}")
    chosen: list[int] = []
    mistake = _surest_mistake(net, heads, split, sample_indices(len(split), min(searched or len(split), len(split))))
    if mistake is not None:
        chosen.append(mistake)
    rows = sample_indices(len(split), min(len(split), CANDIDATES))
    classes = torch.stack([part for part in _parts(heads, split.targets(rows))], dim=1)  # (rows, parts)
    first = classes.new_zeros(0, classes.shape[1]) if not chosen else _row(heads, split, chosen[0])
    taken = first
    while len(chosen) < min(count, len(split)):
        # How unlike the chosen ones an image is: first the least unlike, then the sum.
        unlike = (classes[:, None] != taken[None]).sum(dim=2) if len(taken) else torch.zeros(len(rows), 1)
        merit = unlike.amin(dim=1) * 1000 + unlike.sum(dim=1)
        merit[torch.isin(rows, torch.tensor(chosen, dtype=torch.int64))] = -1
        best = int(merit.argmax())
        chosen.append(int(rows[best]))
        taken = torch.cat([taken, classes[best : best + 1]])
    return chosen


def _row(heads: tuple[Head, ...], split: BatchedDataset, index: int) -> Tensor:
    return torch.stack(list(_parts(heads, split.targets(torch.tensor([index])))), dim=1)


def _parts(heads: tuple[Head, ...], targets: dict[str, Tensor]) -> list[Tensor]:
    """The classes of all heads; of a head that is a product, the classes of its parts."""
    found: list[Tensor] = []
    for head in heads:
        if head.parts:
            found += torch.unravel_index(targets[head.name], tuple(len(part.classes) for part in head.parts))
        else:
            found.append(targets[head.name])
    return found


def _surest_mistake(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, searched: Tensor) -> int | None:
    found: tuple[float, int] | None = None
    net = frozen_copy(net)
    with torch.no_grad():
        for rows in searched.split(500):
            logits = net(split.inputs(rows))
            targets = split.targets(rows)
            for head in heads:
                sure, said = head.probabilities(logits[head.name]).max(dim=1)
                sure = torch.where(said == targets[head.name], 0.0, sure)
                best = int(sure.argmax())
                if sure[best] > 0 and (found is None or sure[best].item() > found[0]):
                    found = (sure[best].item(), int(rows[best]))
    return found[1] if found else None


def from_outside(
    given: Any, image_shape: Sequence[int], expects: str = "image", unreadable: dict[str, str] | None = None
) -> Inputs:
    """One or many images from outside, each as `data.outside.read_image` takes it, brought to `image_shape` (C, H, W).
    A tensor of floats that has this shape already is taken as it is.

    Raises `UserError` where there is none, or one cannot be read; with `unreadable`, {name: why} of those that cannot
    is put there, and the others go on.
    """
    images, names, notes = [], [], []
    for number, source in enumerate(images_of(given, image_shape)):
        name = str(source) if isinstance(source, Path) else f"image {number}"
        try:
            image, done = _read(source, image_shape, expects)
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
    return Inputs(torch.stack(images), _shortest(names), None, notes)


def _read(source: Any, image_shape: Sequence[int], expects: str) -> tuple[Tensor, list[str]]:
    if isinstance(source, Tensor) and source.is_floating_point() and tuple(source.shape) == tuple(image_shape):
        if not (torch.isfinite(source).all() and 0 <= source.min() <= source.max() <= 1):
            raise UserError(WRONG_RANGE)
        pixels = source.detach().float().cpu()
        if not is_on_light((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(), expects):
            return pixels, []
    image, notes = read_image(source, image_shape, expects)
    return image.float() / 255, notes


def _shortest(names: list[str]) -> list[str]:
    """The names of files without their folders, where they are still told apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(names) else names
