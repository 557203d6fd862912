"""Is a heatmap right? Four metrics against the true pixels, and what they give without any insight.

All are pure functions of maps float (N, H, W) and masks bool (N, H, W), the true pixels G, K of them in
each image; all return float64 (N,). Where a mask is empty there is nothing to find, and a map with a NaN in it says
nothing: the score is NaN. A map that is zero everywhere scores 0 (0.5 for `auc`). Equal values get the expected score
over all orders, never the lucky one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def mass_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the positive evidence that lies on true pixels (Arras et al. 2022), in [0, 1]."""
    positive = maps.double().clamp(min=0).flatten(1)
    total = positive.sum(dim=1)
    share = (positive * masks.flatten(1)).sum(dim=1) / total.where(total > 0, 1)
    return _defined(share, maps, masks)


def rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the K highest pixels that are true pixels (Arras et al. 2022), in [0, 1]."""
    values, truth = maps.double().flatten(1), masks.flatten(1)
    count = truth.sum(dim=1, keepdim=True)
    lowest = values.sort(dim=1, descending=True).values.gather(1, (count - 1).clamp(min=0))
    above, equal = values > lowest, values == lowest
    places = count - above.sum(dim=1, keepdim=True)  # that are left for the equal ones
    shared = (equal & truth).sum(dim=1).double() / equal.sum(dim=1)
    hits = (above & truth).sum(dim=1) + places[:, 0] * shared
    return _defined(_unless_zero(hits / count[:, 0].clamp(min=1), maps), maps, masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the highest pixel is a true one (Zhang et al. 2016), 0 or 1, or a share among equals."""
    values = maps.flatten(1)
    highest = values == values.amax(dim=1, keepdim=True)
    share = (highest & masks.flatten(1)).sum(dim=1).double() / highest.sum(dim=1)
    return _defined(_unless_zero(share, maps), maps, masks)


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the ROC curve: the probability that a true pixel is higher than another, in [0, 1]. NaN
    also where every pixel is a true one."""
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
    """The strength of the edges, float (N, H, W), of images float (N, C, H, W): the magnitude of the Sobel
    gradient, the largest of the channels. It knows the picture and nothing of the network."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None].to(images)  # (2, 1, 3, 3)
    count, channels, height, width = images.shape
    padded = F.pad(images.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
    grads = F.conv2d(padded, kernels).square().sum(dim=1).sqrt()
    return grads.view(count, channels, height, width).amax(dim=1)


def layer_upper_bound(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The best map that a coarse layer can draw, float (N, H, W): the mask averaged over each of the layer's
    cells. `rows` int64 (H,) and `columns` int64 (W,) say in which cell a row and a column lie."""
    down, across = (F.one_hot(cells).to(masks.device, torch.float64) for cells in (rows, columns))  # (H, h), (W, w)
    mean_down, mean_across = (member / member.sum(dim=0).clamp(min=1) for member in (down, across))
    layer_map = mean_down.T @ masks.double() @ mean_across
    return down @ layer_map @ across.T


def head_contrast(first: Tensor, second: Tensor, first_masks: Tensor, second_masks: Tensor) -> Tensor:
    """Do two heads' maps of the same image differ where their truths differ? The area under the ROC curve of
    the difference of the maps, each divided by its sum, on the pixels that are true for one head alone."""
    return auc_within(_shares(first) - _shares(second), first_masks, first_masks != second_masks)


def auc_within(maps: Tensor, masks: Tensor, domain: Tensor) -> Tensor:
    """The area under the ROC curve on the pixels of `domain` bool (N, H, W) alone; NaN where all of them are true ones,
    or none."""
    masks = masks & domain
    low = auc(maps.double().masked_fill(~domain, float("-inf")), masks)
    # Every pixel outside lies below all others: take those certain pairs out again.
    won, inside = (pixels.flatten(1).sum(dim=1).double() for pixels in (masks, domain))
    lost, total = inside - won, domain[0].numel()
    area = (low * (total - won) - (total - inside)) / lost
    return area.where((won > 0) & (lost > 0), torch.nan)


def _shares(maps: Tensor) -> Tensor:
    positive = maps.double().clamp(min=0)
    total = positive.sum(dim=(1, 2), keepdim=True)
    return positive / total.where(total > 0, 1)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of two maps of each image, in [-1, 1]; NaN where one of them is constant."""
    return (standard_ranks(first) * standard_ranks(second)).sum(dim=1)


def evidence_rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of two maps of each image, float64 (N,) in [-1, 1], on the pixels where one of them
    is not 0: pixels that are 0 in both are ties, which would make any two maps of an image on black look alike. NaN
    where a map is constant there."""
    found = []
    for one, other in zip(first, second, strict=True):
        evidence = (one != 0) | (other != 0)
        nan = torch.full((1,), torch.nan, dtype=torch.float64)
        found.append(rank_correlation(one[evidence][None], other[evidence][None]) if evidence.any() else nan)
    return torch.cat(found)


def standard_ranks(maps: Tensor) -> Tensor:
    """The ranks of each map's values, less their mean and with a square sum of 1, float64 (N, H W), of which the
    products' sum is Spearman's correlation; NaN where a map is constant."""
    ranks = _mean_ranks(maps.flatten(1))
    ranks = ranks - ranks.mean(dim=1, keepdim=True)
    return ranks / ranks.square().sum(dim=1, keepdim=True).sqrt()


def _mean_ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row, from 1, the mean rank among equals, float64."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2


def bootstrap_ci(scores: Tensor, resamples: int = 1000) -> tuple[float, float, float, int]:
    """(mean, low, high, n) of the scores float (N,) that are not NaN: the mean's 95 % interval by the
    bootstrap."""
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
