"""Checkpoints that a run can go on from. Lightning's `ModelCheckpoint` decides when to write, `VerifiedCheckpointIO`
how."""

from __future__ import annotations

import io
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cnnlab.utils.checkpoints import checkpoint_path, load_checkpoint
from cnnlab.utils.errors import Diverged, UserError
from cnnlab.utils.io import write_atomically


def may_save(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether a run resumed from here ends like one that was never stopped. Not before a validation, nor while
    gradients are accumulated, which no checkpoint holds; nor with `overfit_batches`, whose loader starts anew."""
    accumulating = (batch_idx + 1) % getattr(trainer, "accumulate_grad_batches", 1)
    validates_now = not (batch_idx + 1) % getattr(trainer, "val_check_batch", math.inf)
    overfits = getattr(trainer, "overfit_batches", 0)
    return not (trainer.is_last_batch or validates_now or accumulating or overfits)


class RunCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` for runs that can be resumed anywhere.

    Its state follows a folder that was moved; within an epoch it saves only where a run `may_save`. If both
    `every_n_train_steps` and `train_time_interval` are given, the steps count. A run without validation keeps its last
    weights under a name that monitors validation. Raises `UserError` for another folder or file name than the run's, or
    for more than one file; Lightning's own `ModelCheckpoint` writes these.
    """

    def __init__(
        self, *, every_n_train_steps: int | None = None, train_time_interval: timedelta | None = None, **more: Any
    ) -> None:
        interval = None if every_n_train_steps else train_time_interval
        super().__init__(every_n_train_steps=every_n_train_steps, train_time_interval=interval, **more)
        if self.dirpath is not None or self.filename not in ("best", "last") or self.save_top_k != 1:
            raise UserError(
                "it keeps one file, `best` or `last`, in the run folder; for other files add one of Lightning's own: "
                "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        validates = getattr(pl_module, "validates", lambda: True)
        if stage == "fit" and str(self.monitor).startswith("val/") and not validates():
            self.monitor = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if may_save(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): content for key, content in value.items()}
            return value.replace(before, now, 1) if isinstance(value, str) and value.startswith(before) else value

        super().load_state_dict({name: moved(value) for name, value in state_dict.items()})


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place and rename it; the old `last.ckpt` becomes `previous.ckpt`. Raises `Diverged`
    for weights that are not finite, and `UserError` for a file that is torn or holds more than tensors and numbers."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        for name, value in checkpoint["state_dict"].items():
            if not torch.isfinite(value).all():  # a loss can be finite, and the step after it not
                raise Diverged(f"step {checkpoint['global_step']}: weights of {name} are no longer finite")
        path = Path(path)
        ours = path == checkpoint_path(path.parent.parent, path.stem)
        path.parent.mkdir(exist_ok=True, parents=not ours)  # never recreate a run folder that was deleted
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if path.name == "last.ckpt" and path.exists():
            beside = path.with_name("next.ckpt")
            write_atomically(beside, buffer.getbuffer())
            os.replace(path, path.with_name("previous.ckpt"))
            os.replace(beside, path)
        else:
            write_atomically(path, buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))
