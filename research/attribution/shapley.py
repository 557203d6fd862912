"""The network's own truth: Shapley values of exchanging pixels (Shapley 1953; sampled as by Castro et al. 2009)."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnlab.interpret.network import HeadWrapper

BATCH = 512  # images at once


@torch.no_grad()
def exchange_shapley(
    net: HeadWrapper, image: Tensor, other: Tensor, target: int, orders: int = 8, seed: int = 0
) -> Tensor:
    """Return how much each pixel of `image`, put in place of that of `other`, adds to a class score: estimates from
    random orders, each with its reverse, float64 (orders, H, W). Pixels that do not differ get 0.

    The values of every estimate sum to score(image) - score(other).

    Args:
        net: A head with class scores.
        image, other: Float (C, H, W).
        target: The class.
        orders: How many random orders.
        seed: The seed of the orders.
    """
    places = (image != other).any(dim=0).flatten().nonzero()[:, 0]
    count, generator = len(places), torch.Generator().manual_seed(seed)
    estimates = torch.zeros(orders, image[0].numel(), dtype=torch.float64)
    for row in range(orders if count else 0):
        order = torch.randperm(count, generator=generator)
        for one in (order, order.flip(0)):
            rank = torch.empty_like(order).scatter_(0, one, torch.arange(count))
            put = rank[None, :] < torch.arange(count + 1)[:, None]  # (count + 1, count): the first k of the order
            masks = torch.zeros(count + 1, image[0].numel(), dtype=torch.bool)
            masks[:, places] = put
            masks = masks.view(-1, 1, *image.shape[1:])
            scores = [net(torch.where(part, image, other))[:, target] for part in masks.split(BATCH)]
            estimates[row, places[one]] += torch.cat(scores).double().diff() / 2
    return estimates.view(orders, *image.shape[1:])
