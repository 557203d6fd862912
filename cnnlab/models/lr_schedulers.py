"""Learning rates that torch does not have in this form. Both are pure functions of the step, so a resumed run
goes on exactly, and one whose `trainer.max_epochs` was raised follows the longer schedule from where it
stands."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cnnlab.errors import UserError


def inverse_time(optimizer: Optimizer, decay: float) -> LambdaLR:
    """Keras's `decay`: the rate is lr / (1 + decay * step). `UserError` for a negative `decay`."""
    if not decay >= 0:
        raise UserError(f"lr_scheduler.scheduler.decay={decay} must be at least 0")
    return LambdaLR(optimizer, lambda step: 1 / (1 + decay * step))


def one_cycle(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.2, start: float = 0.04, end: float = 0.001
) -> LambdaLR:
    """Up from `start` * lr to lr in the first `warmup` of all steps, then down to `end` * lr, both along a
    half cosine (Smith and Topin 2018). `UserError` for a `warmup` outside [0, 1).

    torch's `OneCycleLR` fixes its steps when it is built and refuses to go on after them.
    """
    if not 0 <= warmup < 1:
        raise UserError(f"lr_scheduler.scheduler.warmup={warmup} is not in [0, 1)")

    def factor(step: int) -> float:
        peak = warmup * total_steps
        if step < peak:
            return _half_cosine(start, 1.0, step / peak)
        return _half_cosine(1.0, end, min(1.0, (step - peak) / max(1.0, total_steps - 1 - peak)))

    return LambdaLR(optimizer, factor)


def _half_cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2
