"""Loss weights against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cnnlab.models.heads import Head
from cnnlab.training.loss_weighting import DynamicWeightAverage, LossWeighting, UncertaintyWeighting
from cnnlab.utils.errors import UserError

HEADS = (Head("side", ("left", "right")), Head("shade", ("dark", "grey", "light")))


def test_fixed_weights_stay() -> None:
    weighting = LossWeighting(HEADS, {"shade": 3})
    assert weighting(torch.tensor([2.0, 5.0])).item() == 2 + 3 * 5
    weighting.on_epoch_end(torch.tensor([1.0, 1.0]))
    assert weighting.by_head() == {"side": 1.0, "shade": 3.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"shad": 1.0}, r"weighting.weights.shad: there is no head 'shad'; did you mean 'shade'\?"),
        ({"side": -1.0}, "weighting.weights.side=-1.0 is not a number from 0 up"),
        ({"side": "much"}, "weighting.weights.side=much is not a number from 0 up"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossWeighting(HEADS, weights)


def test_uncertainty_weighs_a_head_by_its_precision() -> None:
    weighting = UncertaintyWeighting(HEADS)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([math.log(4), 0.0]))
    loss = weighting(torch.tensor([2.0, 5.0]))
    assert loss.item() == pytest.approx(2 / 4 + math.log(4) / 2 + 5)
    assert weighting.by_head() == pytest.approx({"side": 0.25, "shade": 1.0})
    loss.backward()
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.tolist() == pytest.approx([-2 / 4 + 1 / 2, -5 + 1 / 2])


def test_the_best_variance_is_twice_the_loss() -> None:
    weighting = UncertaintyWeighting(HEADS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        weighting(torch.tensor([0.5, 0.01])).backward()
        optimizer.step()
    weighting(torch.tensor([0.5, 0.01]))
    assert weighting.by_head() == pytest.approx({"side": 1 / (2 * 0.5), "shade": 1 / (2 * 0.01)}, rel=0.01)


def test_the_dynamic_average_favours_the_head_that_learns_more_slowly() -> None:
    weighting = DynamicWeightAverage(HEADS, temperature=2.0)
    weighting.on_epoch_end(torch.tensor([1.0, 1.0]))
    assert weighting.by_head() == {"side": 1.0, "shade": 1.0}
    weighting.on_epoch_end(torch.tensor([0.1, 0.9]))
    first, second = math.exp(0.1 / 2), math.exp(0.9 / 2)
    expected = {"side": 2 * first / (first + second), "shade": 2 * second / (first + second)}
    assert weighting.by_head() == pytest.approx(expected)
    again = DynamicWeightAverage(HEADS)
    again.load_state_dict(weighting.state_dict())
    for one in (weighting, again):
        one.on_epoch_end(torch.tensor([0.1, 0.45]))
    assert again.by_head() == weighting.by_head()
    with pytest.raises(UserError, match=r"weighting.temperature=0 must be above 0"):
        DynamicWeightAverage(HEADS, temperature=0)
