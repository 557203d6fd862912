"""Metrics of heatmaps against the right pixels, and comparisons of heatmaps.

All take maps float (N, H, W) and masks bool (N, H, W) of the right pixels, K in each image, and return float64 (N,). An
empty mask, or a map with a NaN, scores NaN. A map of zeros scores 0 (0.5 for `auc`). Ties get the expected score over
all orders.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def mass_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the positive evidence on right pixels (Arras et al. 2022), in [0, 1]."""
    positive = maps.double().clamp(min=0).flatten(1)
    total = positive.sum(dim=1)
    share = (positive * masks.flatten(1)).sum(dim=1) / total.where(total > 0, 1)
    return _defined(share, maps, masks)


def rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of right pixels among the K highest (Arras et al. 2022), in [0, 1]."""
    values, truth = maps.double().flatten(1), masks.flatten(1)
    count = truth.sum(dim=1, keepdim=True)
    lowest = values.sort(dim=1, descending=True).values.gather(1, (count - 1).clamp(min=0))
    above, equal = values > lowest, values == lowest
    places = count - above.sum(dim=1, keepdim=True)  # left for the tied ones
    shared = (equal & truth).sum(dim=1).double() / equal.sum(dim=1)
    hits = (above & truth).sum(dim=1) + places[:, 0] * shared
    return _defined(_unless_zero(hits / count[:, 0].clamp(min=1), maps), maps, masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 if the highest pixel is right, else 0 (Zhang et al. 2016); a share for ties."""
    values = maps.flatten(1)
    highest = values == values.amax(dim=1, keepdim=True)
    share = (highest & masks.flatten(1)).sum(dim=1).double() / highest.sum(dim=1)
    return _defined(_unless_zero(share, maps), maps, masks)


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the area under the ROC curve, in [0, 1]: the probability that a right pixel is higher than a wrong one.
    NaN also if all pixels are right."""
    truth = masks.flatten(1)
    count = truth.sum(dim=1).double()
    rest = truth.shape[1] - count
    ranks = (_mean_ranks(maps.flatten(1)) * truth).sum(dim=1)
    area = (ranks - count * (count + 1) / 2) / (count * rest)
    return _defined(area.where(rest > 0, torch.nan), maps, masks)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mass": mass_accuracy,
    "rank": rank_accuracy,
    "pointing": pointing_game,
    "auc": auc,
}


def _defined(scores: Tensor, maps: Tensor, masks: Tensor) -> Tensor:
    return scores.where(masks.flatten(1).any(dim=1) & ~maps.flatten(1).isnan().any(dim=1), torch.nan)


def _unless_zero(scores: Tensor, maps: Tensor) -> Tensor:
    return scores * (maps.flatten(1) != 0).any(dim=1)


def sobel(images: Tensor) -> Tensor:
    """Return the Sobel edges float (N, H, W) of images float (N, C, H, W), the largest of the channels."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None].to(images)  # (2, 1, 3, 3)
    count, channels, height, width = images.shape
    padded = F.pad(images.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
    grads = F.conv2d(padded, kernels).square().sum(dim=1).sqrt()
    return grads.view(count, channels, height, width).amax(dim=1)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of two maps of each image, in [-1, 1]; NaN for a constant map."""
    return (standard_ranks(first) * standard_ranks(second)).sum(dim=1)


def evidence_rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of two maps of each image, in [-1, 1], on the pixels with a value in either map.
    Pixels that are 0 in both are ties, and would make any two maps of a black image look alike. NaN for a constant
    map."""
    correlations = []
    for one, other in zip(first, second, strict=True):
        evidence = (one != 0) | (other != 0)
        nan = torch.full((1,), torch.nan, dtype=torch.float64)
        correlations.append(rank_correlation(one[evidence][None], other[evidence][None]) if evidence.any() else nan)
    return torch.cat(correlations)


def standard_ranks(maps: Tensor) -> Tensor:
    """Return centred ranks of each map, with a square sum of 1, float64 (N, H W); NaN for a constant map. The sum of
    products of two is Spearman's correlation."""
    ranks = _mean_ranks(maps.flatten(1))
    ranks = ranks - ranks.mean(dim=1, keepdim=True)
    return ranks / ranks.square().sum(dim=1, keepdim=True).sqrt()


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value in its row, from 1, float64; ties get their mean rank."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2


def bootstrap_ci(scores: Tensor, resamples: int = 1000) -> tuple[float, float, float, int]:
    """Return (mean, low, high, n) of the scores float (N,) without NaN, with the mean's 95 % bootstrap interval."""
    scores = scores[~scores.isnan()]
    if not len(scores):
        return torch.nan, torch.nan, torch.nan, 0
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(scores), (resamples, len(scores)), generator=generator)
    means = scores[rows].mean(dim=1).sort().values
    return (
        scores.mean().item(),
        means[int(0.025 * resamples)].item(),
        means[int(0.975 * resamples)].item(),
        len(scores),
    )
