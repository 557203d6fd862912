"""What a run can go on from. Lightning's `ModelCheckpoint` says when, `VerifiedCheckpointIO` how."""

from __future__ import annotations

import io
import os
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cnnlab.errors import Diverged, UserError
from cnnlab.io import write_atomically

LAST = ("last", "previous")  # in the order they are tried


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the run in `folder` keeps its checkpoint "best", "last" or "previous"."""
    return folder / "checkpoints" / f"{name}.ckpt"


def may_save(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a run that is resumed from here ends like one that was left alone: not after the last batch of an epoch,
    where it would leave out the validation, and not while gradients are accumulated, which no checkpoint holds."""
    accumulating = (batch_idx + 1) % getattr(trainer, "accumulate_grad_batches", 1)
    return not (trainer.is_last_batch or accumulating)


class RunCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` for a run that can be resumed anywhere: its state follows a folder that was moved, and within
    an epoch it is written only where a run `may_save`. Where both `every_n_train_steps` and `train_time_interval` are
    given, the steps count."""

    def __init__(
        self, *, every_n_train_steps: int | None = None, train_time_interval: timedelta | None = None, **more: Any
    ) -> None:
        interval = None if every_n_train_steps else train_time_interval
        super().__init__(every_n_train_steps=every_n_train_steps, train_time_interval=interval, **more)

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
    """Writes a checkpoint beside its place and renames it; the `last.ckpt` before becomes `previous.ckpt`.
    Weights that are not finite raise `Diverged` and are not written; a file that is torn or holds anything
    but plain tensors and numbers is not read (`UserError`)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        for name, value in checkpoint["state_dict"].items():
            if not torch.isfinite(value).all():  # a loss can be finite, and the step after it not
                raise Diverged(f"step {checkpoint['global_step']}: weights of {name} are no longer finite")
        path = Path(path)
        ours = path == checkpoint_path(path.parent.parent, path.stem)
        path.parent.mkdir(exist_ok=True, parents=not ours)  # of a run: a folder that went away is not made anew
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if path.name == f"{LAST[0]}.ckpt" and path.exists():
            beside = path.with_name("next.ckpt")
            write_atomically(beside, buffer.getbuffer())
            os.replace(path, path.with_name(f"{LAST[1]}.ckpt"))
            os.replace(beside, path)
        else:
            write_atomically(path, buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors by name, as `load_checkpoint` reads them, in one step."""
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors}, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content: plain tensors and numbers, never code. Raises `UserError` where it is torn,
    edited, or not a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises all kinds, by the place where the file is broken
        raise UserError(f"{path} is broken or no checkpoint of plain tensors ({type(error).__name__})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint: it holds no weights")
    return content


def last_valid_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint of the run in `folder` that can be read (None where there is none), and the broken ones
    before it."""
    broken = []
    for name in LAST:
        path = checkpoint_path(folder, name)
        if path.is_file():
            try:
                load_checkpoint(path)
            except UserError:
                broken.append(path)
                continue
            return path, broken
    return None, broken
