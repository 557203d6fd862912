"""The network's own truth: the pixels whose exchange for those of a counterfactual image changes its answer.

A trained network need not use all that the data offer (AttributionLab, Zhang et al. 2023), so that a heatmap may differ
from the data's truth and be right about the network. Here it is asked: which of the pixels that differ between an image
and its counterfactual must be exchanged for the answer to change?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnlab.interpret.network import HeadWrapper

BATCH = 250  # images at once
MAX_PAIRS = 300  # all are tried

Margins = Callable[[Tensor], Tensor]  # sets of exchanged pixels bool (S, D) -> by how much another answer leads (S,)


@dataclass(frozen=True)
class FlippingSet:
    """For each of N images a minimal set of pixels that changes the answer when exchanged: `masks` bool (N, H, W),
    empty if even all pixels do not. No set of fewer than `fewest` int64 (N,) pixels changes the answer."""

    masks: Tensor
    fewest: Tensor

    @property
    def sizes(self) -> Tensor:
        """How many pixels each set has, int64 (N,)."""
        return self.masks.flatten(1).sum(dim=1)


def flipping_set(net: HeadWrapper, images: Tensor, others: Tensor) -> FlippingSet:
    """Return minimal sets of pixels of `images` float32 (N, C, H, W) that change the answer of a head when exchanged
    for pixels of the counterfactuals `others`.

    They are found greedily, one pixel at a time; pixels that turn out unnecessary are put back. All single pixels are
    tried, and all of up to MOST_PAIRS pairs.
    """
    found = [_of_one(net, image, other) for image, other in zip(images, others, strict=True)]
    return FlippingSet(torch.stack([mask for mask, _ in found]), torch.tensor([fewest for _, fewest in found]))


@torch.no_grad()
def _of_one(net: HeadWrapper, image: Tensor, other: Tensor) -> tuple[Tensor, int]:
    differ = (image != other).any(dim=0)
    rows, columns = differ.nonzero().unbind(dim=1)
    answer = int(net(image[None]).argmax())

    def margins(sets: Tensor) -> Tensor:
        values = []
        for part in sets.split(BATCH):
            exchanged = torch.zeros(len(part), *differ.shape, dtype=torch.bool, device=image.device)
            exchanged[:, rows, columns] = part.to(image.device)
            scores = net(torch.where(exchanged[:, None], other, image))
            own = scores[:, answer].clone()
            scores[:, answer] = -torch.inf
            values.append((scores.amax(dim=1) - own).cpu())
        return torch.cat(values)

    mask, count = torch.zeros_like(differ, device="cpu"), len(rows)
    if not count or margins(torch.ones(1, count, dtype=torch.bool)) <= 0:
        return mask, 0
    chosen, fewest = _smallest(margins, count)
    mask[rows.cpu()[chosen], columns.cpu()[chosen]] = True
    return mask, fewest


def _smallest(margins: Margins, count: int) -> tuple[Tensor, int]:
    """A set bool (D,) that changes the answer, and how many pixels any such set has at least."""
    chosen = _pruned(margins, _greedy(margins, count))
    size = int(chosen.sum())
    if size <= 2:  # greedy tries every single pixel
        return chosen, size
    if count * (count - 1) > 2 * MAX_PAIRS:
        return chosen, 2
    pairs = torch.combinations(torch.arange(count))
    sets = torch.zeros(len(pairs), count, dtype=torch.bool).scatter_(1, pairs, True)
    reached = margins(sets)
    return (sets[reached.argmax()], 2) if reached.max() > 0 else (chosen, 3)


def _greedy(margins: Margins, count: int) -> Tensor:
    chosen, reached = torch.zeros(count, dtype=torch.bool), torch.tensor(-1.0)
    while reached.max() <= 0 and not chosen.all():
        free = (~chosen).nonzero()[:, 0]
        sets = chosen | torch.nn.functional.one_hot(free, count).bool()
        reached = margins(sets)
        chosen = sets[reached.argmax()]
    return chosen


def _pruned(margins: Margins, chosen: Tensor) -> Tensor:
    while int(chosen.sum()) > 1:
        used = chosen.nonzero()[:, 0]
        sets = chosen & ~torch.nn.functional.one_hot(used, len(chosen)).bool()
        reached = margins(sets)
        if reached.max() <= 0:
            break
        chosen = sets[reached.argmax()]
    return chosen
