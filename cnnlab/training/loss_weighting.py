"""Combine the losses of several heads: with fixed weights, learned ones, or weights that follow the losses.

A weighting is a module of (heads). It maps their losses, float (heads,), to the loss to minimise, a scalar. Learned
values are in its state, so a resumed run continues with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError, did_you_mean


class LossWeighting(nn.Module):
    """The sum of the losses with fixed weights {head: weight}, by default 1. Raises `UserError` for an unknown head,
    and for a weight that is negative or not a number."""

    current: Tensor  # float32 (heads,)

    def __init__(self, heads: Sequence[Head], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.names, weights = tuple(head.name for head in heads), weights or {}
        for name, weight in weights.items():
            if name not in self.names:
                raise UserError(f"weighting.weights.{name}: there is no head '{name}'{did_you_mean(name, self.names)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise UserError(f"weighting.weights.{name}={weight} is not a number from 0 up")
        self.register_buffer("current", torch.tensor([float(weights.get(name, 1.0)) for name in self.names]))

    def forward(self, losses: Tensor) -> Tensor:
        return (self.current * losses).sum()

    def on_epoch_end(self, losses: Tensor) -> None:
        """Update the weights with the mean losses of a training epoch, float32 (heads,)."""

    def by_head(self) -> dict[str, float]:
        """Return {head: current weight}."""
        return dict(zip(self.names, self.current.tolist(), strict=True))


class UncertaintyWeighting(LossWeighting):
    """Learned weights exp(-s), where s is the logarithm of a variance. Adding s / 2 to the loss keeps the weights above
    0 (Kendall, Gal and Cipolla 2018)."""

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, losses: Tensor) -> Tensor:
        self.current = torch.exp(-self.log_variance.detach())
        return (torch.exp(-self.log_variance) * losses + self.log_variance / 2).sum()


class DynamicWeightAverage(LossWeighting):
    """Dynamic weight average (Liu, Johns and Davison 2019): a head gets more weight if its loss fell less than the
    others' in the last epoch. The weights sum to the number of heads, and are equal in the first two epochs. A higher
    `temperature` makes them more equal."""

    last: Tensor  # mean losses of the last epoch, float32 (heads,)

    def __init__(self, heads: Sequence[Head], temperature: float = 2.0) -> None:
        super().__init__(heads)
        if not temperature > 0:
            raise UserError(f"weighting.temperature={temperature} must be above 0")
        self.temperature = temperature
        self.register_buffer("last", torch.zeros(len(self.names)))

    def on_epoch_end(self, losses: Tensor) -> None:
        if self.last.any():
            ratio = losses / self.last.clamp(min=1e-12)
            self.current = len(losses) * (ratio / self.temperature).softmax(dim=0)
        self.last = losses
