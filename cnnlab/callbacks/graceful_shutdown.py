"""SIGINT and SIGTERM end a run in order: after the step it is in, with a checkpoint to go on from."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L

from cnnlab.callbacks.checkpoint import checkpoint_path, may_save
from cnnlab.log import is_main_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """SIGINT or SIGTERM asked the run to end; the exit status is the usual one, 128 + the signal's number, and 0
    in processes that Lightning started, whose end it would else take for a crash."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number if is_main_process() else 0)


def in_main_thread() -> bool:
    """Whether this is the thread that signals reach; no other may say what is done with them."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise `Interrupted` at once, but in the processes that follow the main one, which
    says when."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if is_main_process():
            raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS if in_main_thread()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class GracefulShutdown(L.Callback):
    """While a network is trained, SIGINT and SIGTERM wait for the end of the step, so that no half step is saved;
    then `checkpoints/last.ckpt` is written and `Interrupted` raised. A second signal does not wait.

    Lightning itself ends on SIGTERM without a checkpoint, and on SIGINT wherever it is. It gives the signals
    back when the training ends.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in SIGNALS if in_main_thread() else ():
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not is_main_process():
            return
        if self.received is not None:
            raise Interrupted(number)
        self.received = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not may_save(trainer, batch_idx):  # the end of the epoch has a checkpoint of its own
            return
        stop = self.received is not None
        if trainer.world_size > 1:  # all processes stop at the same step
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.save_checkpoint(checkpoint_path(Path(trainer.default_root_dir), "last"))
            raise Interrupted(self.received or signal.SIGTERM)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.received is not None:
            raise Interrupted(self.received)
