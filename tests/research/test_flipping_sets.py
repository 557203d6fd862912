"""The network's own truth against sets worked out by hand and by enumeration."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnlab.interpret.network import HeadWrapper
from cnnlab.models.heads import Head
from research.attribution.flipping_sets import flipping_set
from research.attribution.hand_built import left_half_net

COLOUR = Head("colour", ("red", "blue"))


def _pair(values: list[float], column: int = 5) -> tuple[Tensor, Tensor]:
    """A red line of these grey levels down a column, and the same in blue, (1, 3, 28, 28) each."""
    red = torch.zeros(1, 3, 28, 28)
    red[0, 0, 3 : 3 + len(values), column] = torch.tensor(values)
    return red, red.flip(1)


@pytest.mark.parametrize(
    ("values", "size", "fewest"),
    [
        ([0.2, 0.5, 0.9], 1, 1),  # 0.9 blue against 0.7 red
        ([1.0, 1.0, 1.0, 1.0], 3, 3),  # two against two is no lead, and no pair of six flips it
        ([0.5, 0.5, 0.4], 2, 2),
    ],
)
def test_sizes_by_hand(values: list[float], size: int, fewest: int) -> None:
    found = flipping_set(HeadWrapper(left_half_net(COLOUR), "colour"), *_pair(values))
    assert found.sizes.tolist() == [size]
    assert found.fewest.tolist() == [fewest]
    assert found.masks[0].nonzero()[:, 1].unique().tolist() == [5]


def test_what_the_network_does_not_look_at_is_not_its_truth() -> None:
    left, right = _pair([1.0, 1.0, 1.0]), _pair([1.0] * 6, column=20)
    images, others = (torch.cat([a, a + b]) for a, b in zip(left, right, strict=True))
    found = flipping_set(HeadWrapper(left_half_net(COLOUR), "colour"), images, others)
    assert not found.masks[:, :, 14:].any()
    assert torch.equal(found.masks[0], found.masks[1])


def test_where_nothing_changes_the_answer_the_set_is_empty() -> None:
    found = flipping_set(HeadWrapper(left_half_net(COLOUR), "colour"), *_pair([1.0], column=20))
    assert not found.masks.any()
    assert found.fewest.tolist() == [0]


class _Linear(nn.Module):
    """Scores of two classes, 0 and a weighted sum of the pixels of a 1 x K image less a threshold."""

    def __init__(self, weights: list[float], threshold: float) -> None:
        super().__init__()
        self.weights, self.threshold = torch.tensor(weights), threshold

    def forward(self, images: Tensor) -> Tensor:
        score = (images.flatten(1) * self.weights).sum(dim=1) - self.threshold
        return torch.stack([torch.zeros_like(score), score], dim=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 9), min_size=2, max_size=7), st.integers(1, 12))
def test_it_is_never_smaller_than_the_smallest_and_never_has_a_pixel_too_many(weights: list[int], limit: int) -> None:
    count = len(weights)
    net = HeadWrapper(_Linear([float(w) for w in weights], limit - 0.5))
    image, other = torch.zeros(1, 1, 1, count), torch.ones(1, 1, 1, count)
    if sum(weights) < limit:  # all together do not flip it
        assert not flipping_set(net, image, other).masks.any()
        return
    sums = [(size, sum(chosen)) for size in range(1, count + 1) for chosen in combinations(weights, size)]
    smallest = min(size for size, total in sums if total >= limit)
    found = flipping_set(net, image, other)
    chosen = [weights[place] for place in found.masks[0, 0].nonzero()[:, 0].tolist()]
    assert sum(chosen) >= limit
    assert all(sum(chosen) - one < limit for one in chosen) or len(chosen) == 1
    assert found.fewest.item() <= smallest <= len(chosen)
    assert len(chosen) == smallest  # of a sum, the largest first is the best
