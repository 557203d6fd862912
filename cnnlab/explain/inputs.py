"""Which images are explained: image files from outside, or images of the test split that a person would
pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.datamodule import BatchedDataset
from cnnlab.data.outside import images_of, read_image
from cnnlab.errors import UserError
from cnnlab.explain.network import frozen_copy
from cnnlab.models.heads import Head


@dataclass(frozen=True)
class Inputs:
    """Images uint8 (N, C, H, W), a name for each, {head: true class int64 (N,)} where it is known, and
    notes on what was done to an image from outside."""

    images: Tensor
    names: list[str]
    truth: dict[str, Tensor] | None = None
    notes: list[list[str]] = field(default_factory=list)


def from_split(split: BatchedDataset, indices: list[int]) -> Inputs:
    """Images of a split. Raises `UserError` for an index beyond it."""
    beyond = [index for index in indices if not 0 <= index < len(split)]
    if beyond:
        raise UserError(f"indices: {beyond[0]} is not in 0..{len(split) - 1}, the test split")
    rows = torch.tensor(indices)
    return Inputs(split.images(rows), [f"test image {index}" for index in indices], split.targets(rows))


def pick(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, count: int) -> list[int]:
    """Indices of `count` images that differ most in their classes, in order; where the network errs on any,
    the first is the mistake that it is surest of."""
    chosen: list[int] = []
    mistake = _surest_mistake(net, heads, split)
    if mistake is not None:
        chosen.append(mistake)
    rows = torch.arange(min(len(split), 2000))
    classes = torch.stack([part for part in _parts(heads, split.targets(rows))], dim=1)  # (rows, parts)
    first = classes.new_zeros(0, classes.shape[1]) if not chosen else _row(heads, split, chosen[0])
    taken = first
    while len(chosen) < min(count, len(split)):
        # How unlike the chosen ones an image is: first the least unlike, then the sum.
        unlike = (classes[:, None] != taken[None]).sum(dim=2) if len(taken) else torch.zeros(len(rows), 1)
        merit = unlike.amin(dim=1) * 1000 + unlike.sum(dim=1)
        merit[[index for index in chosen if index < len(rows)]] = -1
        best = int(merit.argmax())
        chosen.append(best)
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


def _surest_mistake(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset) -> int | None:
    found: tuple[float, int] | None = None
    net = frozen_copy(net)
    with torch.no_grad():
        for rows in torch.arange(len(split)).split(500):
            logits = net(split.inputs(rows))
            targets = split.targets(rows)
            for head in heads:
                sure, said = head.probabilities(logits[head.name]).max(dim=1)
                sure = torch.where(said == targets[head.name], 0.0, sure)
                best = int(sure.argmax())
                if sure[best] > 0 and (found is None or sure[best].item() > found[0]):
                    found = (sure[best].item(), int(rows[best]))
    return found[1] if found else None


def from_outside(given: Any, image_shape: Sequence[int], expects: str = "image") -> Inputs:
    """One or many images from outside, each as `data.outside.read_image` takes it, brought to `image_shape` (C, H, W).
    Raises `UserError` where there is none."""
    sources = images_of(given)
    read = [read_image(source, image_shape, expects) for source in sources]
    names = [source.name if isinstance(source, Path) else f"image {i}" for i, source in enumerate(sources)]
    return Inputs(torch.stack([image for image, _ in read]), names, None, [notes for _, notes in read])
