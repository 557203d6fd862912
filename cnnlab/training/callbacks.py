"""Callbacks of a run: its history, an orderly end on a signal, the progress bar."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar

from cnnlab.training.checkpoint import may_save
from cnnlab.utils.checkpoints import checkpoint_path
from cnnlab.utils.console import is_main_process, percent
from cnnlab.utils.io import to_csv, write_atomically

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Row = dict[str, float]
log = logging.getLogger(__name__)


def kept_accuracy(summary: Mapping[str, Any]) -> float:
    """Return the share of images with every head right, by the kept weights of a run with this `summary.json`: on
    validation, or in training without validation; NaN without any."""
    accuracy = summary.get("accuracy", {})
    return float((accuracy.get("val") or accuracy.get("train") or {}).get("joint", float("nan")))


class MetricsHistory(Checkpoint):
    """Write `metrics.csv`, one row per epoch, and a line in the log.

    The rows are kept in the checkpoint, so that a resumed run has exactly the earlier rows; Lightning's `CSVLogger`
    does not promise that. `seconds` is the time in training steps, `val_seconds` in validation. It is a `Checkpoint`
    because Lightning runs those last, after everything was logged.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._start = self._validated = self._lr = 0.0
        self._stopped = False  # by a callback, as EarlyStopping; Lightning's checkpoints do not tell

    def state_dict(self) -> dict[str, Any]:
        elapsed = time.perf_counter() - self._start
        return {"rows": self.rows, "elapsed": elapsed, "validated": self._validated, "stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self._start = time.perf_counter() - state_dict["elapsed"]  # for a run that goes on within an epoch
        self._validated, self._stopped = state_dict["validated"], state_dict["stopped"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self._stopped

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._validated = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._val_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated += time.perf_counter() - self._val_start

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total, self._stopped = time.perf_counter() - self._start, trainer.should_stop
        stages = ("train/", "val/") if getattr(pl_module, "validated", True) else ("train/",)  # not an earlier epoch's
        logged = trainer.callback_metrics.items()
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            **{name: value.item() for name, value in logged if name.startswith(stages) and not name.endswith("_step")},
            "lr": self._lr,
            "seconds": round(total - self._validated, 3),
            "val_seconds": round(self._validated, 3),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / "metrics.csv", to_csv(self.rows))
            log.info(epoch_line(row, trainer.max_epochs))


def epoch_line(row: Row, epochs: int | None) -> str:
    """Return the log's line for an epoch: losses, accuracies in per cent, seconds."""
    stage = "val" if "val/loss" in row else "train"
    losses = ", ".join(f"{name} {row[f'{name}/loss']:.4f}" for name in dict.fromkeys(("train", stage)))
    heads = [name.split("/")[1] for name in row if name.startswith("train/") and name.count("/") == 2]
    heads = [head for head in dict.fromkeys(heads) if f"{stage}/{head}/acc" in row]
    shares = {"all": row[f"{stage}/acc"]} if len(heads) > 1 else {}
    shares |= {head: row[f"{stage}/{head}/acc"] for head in heads}
    right = "  ".join(f"{name} {percent(share)}".removesuffix(" %") for name, share in shares.items())
    number = f"{int(row['epoch'])}/{epochs}" if epochs and epochs > 0 else f"{int(row['epoch'])}"  # -1: no bound
    return f"epoch {number}  loss {losses}  {stage} % {right}  {row['seconds'] + row['val_seconds']:.1f} s"


class Interrupted(SystemExit):
    """SIGINT or SIGTERM asked the run to end. The exit status is 128 + the signal's number, and 0 in processes that
    Lightning started, which would otherwise report a crash."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number if is_main_process() else 0)


def in_main_thread() -> bool:
    """Return whether this is the thread that may handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` at once on SIGINT and SIGTERM; only in the main process, which tells the others."""

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
    """On SIGINT and SIGTERM, finish the training step, write `checkpoints/last.ckpt` and raise `Interrupted`. A second
    signal does not wait. Lightning alone ends on SIGTERM without a checkpoint, and on SIGINT within a step."""

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
        if not may_save(trainer, batch_idx):  # the end of the epoch has its own checkpoint
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


class ProgressBar(RichProgressBar):
    """Lightning's bar with epochs counted from 1, as in the log."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        of = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        return f"{f'Epoch {current_epoch + 1}{of}':{len(self.validation_description)}}"
