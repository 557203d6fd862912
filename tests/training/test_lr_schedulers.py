"""Learning rates against numbers worked out by hand."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from cnnlab.training.lr_schedulers import inverse_time, one_cycle
from cnnlab.utils.errors import UserError


def _optimizer(rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def _rates(scheduler: LambdaLR, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_inverse_time_is_keras_decay_every_step() -> None:
    optimizer = _optimizer(0.1)
    rates = _rates(inverse_time(optimizer, decay=0.5), optimizer, 4)
    assert rates == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2, 0.1 / 2.5])


def test_one_cycle_goes_up_and_down_along_half_cosines() -> None:
    optimizer = _optimizer(1.0)
    scheduler = one_cycle(optimizer, total_steps=9, warmup=4 / 9, start=0.2, end=0.0)
    # up: 0.2 + 0.8 (1 - cos(pi k / 4)) / 2 for k = 0..3; down: (1 + cos(pi k / 4)) / 2 for k = 0..4
    up = [0.2, 0.3171573, 0.6, 0.8828427]
    down = [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    assert _rates(scheduler, optimizer, 9) == pytest.approx(up + down)


def test_bad_settings_are_refused() -> None:
    for make in (lambda o: inverse_time(o, decay=-1), lambda o: one_cycle(o, total_steps=1, warmup=1.0)):
        with pytest.raises(UserError, match=r"lr_scheduler\.scheduler\."):
            make(_optimizer())
