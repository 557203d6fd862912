"""Learning rates against numbers worked out by hand."""

import pytest
import torch

from cnnlab import UserError
from cnnlab.schedules import constant, every_epoch, inverse_time, one_cycle, plateau


def _optimizer(rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _rates(schedule: dict, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return rates


def test_constant() -> None:
    optimizer = _optimizer(0.5)
    assert _rates(constant(optimizer, steps=3), optimizer, 3) == [0.5, 0.5, 0.5]


def test_inverse_time_is_keras_decay_every_step() -> None:
    optimizer = _optimizer(0.1)
    schedule = inverse_time(optimizer, steps=4, decay=0.5)
    assert schedule["interval"] == "step"
    assert _rates(schedule, optimizer, 4) == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2, 0.1 / 2.5])


def test_every_epoch_multiplies() -> None:
    optimizer = _optimizer(0.8)
    schedule = every_epoch(optimizer, steps=100, factor=0.5)
    assert schedule["interval"] == "epoch"
    assert _rates(schedule, optimizer, 3) == pytest.approx([0.8, 0.4, 0.2])


def test_one_cycle_goes_up_and_down_along_half_cosines() -> None:
    optimizer = _optimizer(1.0)
    schedule = one_cycle(optimizer, steps=9, warmup=4 / 9, start=0.2, end=0.0)
    # up: 0.2 + 0.8 (1 - cos(pi k / 4)) / 2 for k = 0..3; down: (1 + cos(pi k / 4)) / 2 for k = 0..4
    up = [0.2, 0.3171573, 0.6, 0.8828427]
    down = [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    assert _rates(schedule, optimizer, 9) == pytest.approx(up + down)


def test_plateau_waits_for_its_patience() -> None:
    optimizer = _optimizer(1.0)
    schedule = plateau(optimizer, steps=1, factor=0.1, patience=1)
    assert schedule["monitor"] == "watched_loss"
    rates = []
    for loss in (3.0, 2.0, 2.0, 2.0):  # does not fall in the third and the fourth epoch
        schedule["scheduler"].step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_bad_settings_are_refused() -> None:
    for make, settings in (
        (inverse_time, {"decay": -1}),
        (every_epoch, {"factor": -0.1}),
        (one_cycle, {"warmup": 1.0, "start": 0, "end": 0}),
        (plateau, {"factor": 1, "patience": 1}),
    ):
        with pytest.raises(UserError, match=r"schedule\."):
            make(_optimizer(), steps=1, **settings)
