"""What a training was like, epoch by epoch: `metrics.csv`, and a line in the log."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint

from cnnlab.io import to_csv, write_atomically
from cnnlab.log import percent

Row = dict[str, float]
log = logging.getLogger(__name__)


def accuracies(rows: list[Row]) -> list[float]:
    """The share of images with every head right, epoch by epoch, on validation, or on training where there is no
    validation."""
    stage = "val" if any("val/acc" in row for row in rows) else "train"
    return [row[f"{stage}/acc"] for row in rows if f"{stage}/acc" in row]


def best_accuracy(rows: list[Row]) -> float:
    """The highest of `accuracies`; NaN where there is none."""
    return max(accuracies(rows), default=float("nan"))


class MetricsHistory(Checkpoint):
    """One row an epoch of all that was logged for it, written to `metrics.csv` in the run's folder.

    The rows are kept in the checkpoint, so that a resumed run has the rows of before and no others, which
    Lightning's `CSVLogger` does not promise. `seconds` is the time in training steps, `val_seconds` the time in
    validation. A `Checkpoint` for Lightning: those run after the module has logged, and this is the first of them.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._start = self._trained = self._lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "elapsed": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self._start = time.perf_counter() - state_dict["elapsed"]  # where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._trained = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = time.perf_counter() - self._start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = time.perf_counter() - self._start
        trained = self._trained or total
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if not k.endswith("_step")}
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            **{name: value for name, value in logged.items() if name.startswith(("train/", "val/"))},
            "lr": self._lr,
            "seconds": round(trained, 3),
            "val_seconds": round(total - trained, 3),
        }
        if not getattr(pl_module, "validated", True):
            row = {name: value for name, value in row.items() if not name.startswith("val/")}  # of an epoch before
        self.rows.append(row)
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / "metrics.csv", to_csv(self.rows))
            log.info(epoch_line(row, trainer.max_epochs))


def epoch_line(row: Row, epochs: int | None) -> str:
    """What the log says of an epoch: losses and accuracies in per cent, of validation where there is one, and the
    seconds."""
    stage = "val" if "val/loss" in row else "train"
    losses = ", ".join(f"{name} {row[f'{name}/loss']:.4f}" for name in dict.fromkeys(("train", stage)))
    parts = [name.split("/") for name in row if name.startswith("train/")]
    heads = [part[1] for part in parts if len(part) == 3 and part[2] == "acc"]
    shares = {"all": row[f"{stage}/acc"]} if len(heads) > 1 else {}
    shares |= {name: row[f"{stage}/{name}/acc"] for name in heads}
    right = "  ".join(f"{name} {percent(share)}".removesuffix(" %") for name, share in shares.items())
    seconds = row["seconds"] + row["val_seconds"]
    number = f"{int(row['epoch'])}/{epochs}" if epochs and epochs > 0 else f"{int(row['epoch'])}"  # -1: no bound
    return f"epoch {number}  loss {losses}  {stage} % {right}  {seconds:.1f} s"
