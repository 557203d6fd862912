"""Learning-rate schedules: each takes an optimizer and says how its rate goes on, per step or per epoch.

All but `plateau` are pure functions of the step, so a resumed run goes on exactly, and one whose
`trainer.max_epochs` was raised follows the longer schedule from where it stands.
"""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cnnlab import UserError

Schedule = dict[str, Any]  # Lightning's lr_scheduler configuration


def constant(optimizer: Optimizer, steps: int) -> Schedule:
    """The rate stays as it is."""
    return {"scheduler": LambdaLR(optimizer, lambda _: 1.0), "interval": "epoch"}


def inverse_time(optimizer: Optimizer, steps: int, decay: float) -> Schedule:
    """Keras's `decay`: lr / (1 + decay * step), every step."""
    _at_least("decay", decay, 0)
    return {"scheduler": LambdaLR(optimizer, lambda step: 1 / (1 + decay * step)), "interval": "step"}


def every_epoch(optimizer: Optimizer, steps: int, factor: float) -> Schedule:
    """The rate is multiplied by `factor` after each epoch."""
    _at_least("factor", factor, 0)
    return {"scheduler": LambdaLR(optimizer, lambda epoch: factor**epoch), "interval": "epoch"}


def plateau(optimizer: Optimizer, steps: int, factor: float, patience: int) -> Schedule:
    """The rate is multiplied by `factor` when the validation loss has not fallen for `patience` epochs
    (the training loss where there is no validation split)."""
    if not 0 < factor < 1:
        raise UserError(f"schedule.factor={factor} is not in (0, 1)")
    scheduler = ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
    return {"scheduler": scheduler, "interval": "epoch", "monitor": "watched_loss"}


def one_cycle(optimizer: Optimizer, steps: int, warmup: float, start: float, end: float) -> Schedule:
    """Up from `start` * lr to lr in the first `warmup` of all steps, then down to `end` * lr, both along a
    half cosine (Smith and Topin 2018)."""
    if not 0 <= warmup < 1:
        raise UserError(f"schedule.warmup={warmup} is not in [0, 1)")

    def factor(step: int) -> float:
        peak = warmup * steps
        if step < peak:
            return _half_cosine(start, 1.0, step / peak)
        return _half_cosine(1.0, end, min(1.0, (step - peak) / max(1.0, steps - 1 - peak)))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def _half_cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UserError(f"schedule.{name}={value} must be at least {least}")
