"""Learning rate schedules as functions of the step. A resumed run continues exactly; with more `trainer.max_epochs` it
follows the longer schedule."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cnnlab.utils.errors import UserError


def inverse_time(optimizer: Optimizer, decay: float) -> LambdaLR:
    """Return Keras's `decay`: lr / (1 + decay * step). Raises `UserError` for a negative `decay`."""
    if not decay >= 0:
        raise UserError(f"lr_scheduler.scheduler.decay={decay} must be at least 0")
    return LambdaLR(optimizer, lambda step: 1 / (1 + decay * step))


def one_cycle(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.2, start: float = 0.04, end: float = 0.001
) -> LambdaLR:
    """Return the one-cycle schedule (Smith and Topin 2018): from `start` * lr up to lr in the first `warmup` of all
    steps, then down to `end` * lr, both along a half cosine. Raises `UserError` for a `warmup` outside [0, 1).

    torch's `OneCycleLR` cannot run for more steps than it was built for.
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
