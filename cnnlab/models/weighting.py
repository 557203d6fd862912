"""How the losses of several heads become one: weights set by hand, learned, or evened out epoch by epoch.

Each is a module of its heads: called with their losses, float (heads,), it gives the loss to minimise, a
scalar. What it learns lies in its state, so a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError, did_you_mean
from cnnlab.models.heads import Head


class LossWeighting(nn.Module):
    """Weights of the heads, all 1 to begin with."""

    current: Tensor  # float32 (heads,)

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.names = tuple(head.name for head in heads)
        self.register_buffer("current", torch.ones(len(self.names)))

    def forward(self, losses: Tensor) -> Tensor:
        return (self.current * losses).sum()

    def on_epoch_end(self, losses: Tensor) -> None:
        """Told the mean losses, float32 (heads,), of each training epoch."""

    def by_head(self) -> dict[str, float]:
        """{head: its weight now}."""
        return dict(zip(self.names, self.current.tolist(), strict=True))


class FixedWeights(LossWeighting):
    """Weights {head: weight} that stay as they are, 1 where nothing is said. Raises `UserError` for a head
    that is not there, and for a weight that is negative or no number."""

    def __init__(self, heads: Sequence[Head], weights: Mapping[str, float]) -> None:
        super().__init__(heads)
        for name, weight in weights.items():
            _check(name, weight, self.names)
        self.current = torch.tensor([float(weights.get(name, 1.0)) for name in self.names])


class UncertaintyWeighting(LossWeighting):
    """Learned weights exp(-s) of each head, with s / 2 added to the loss, so that they do not all fall to
    0; s is the logarithm of a variance and learned with the network (Kendall, Gal and Cipolla 2018)."""

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, losses: Tensor) -> Tensor:
        self.current = torch.exp(-self.log_variance.detach())
        return (torch.exp(-self.log_variance) * losses + self.log_variance / 2).sum()


class DynamicWeightAverage(LossWeighting):
    """Dynamic weight average (Liu, Johns and Davison 2019): a head whose loss fell less than the others' from
    the epoch before last to the last gets more weight. The weights sum to the number of heads; the first
    two epochs have equal ones. `temperature`: the higher, the more equal."""

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


def _check(name: str, weight: object, names: Sequence[str]) -> None:
    if name not in names:
        raise UserError(f"weighting.weights.{name}: there is no head '{name}'{did_you_mean(name, names)}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UserError(f"weighting.weights.{name}={weight} is not a number from 0 up")
