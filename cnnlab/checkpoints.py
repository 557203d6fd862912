"""Where a run can go on from, whatever happens: checkpoints written whole, the one before kept, signals
that wait for the end of a step."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from cnnlab import Diverged, UserError, processes

LAST = ("last", "previous")  # in the order they are tried


class Interrupted(SystemExit):
    """SIGINT or SIGTERM asked the run to end; the exit status is the usual one, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """While active, SIGINT and SIGTERM raise `Interrupted` at once, or, while `waiting`, are only kept in
    `came`, so that a step is never cut in half. A second signal does not wait."""

    def __init__(self) -> None:
        self.waiting = False
        self.came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, also from whoever took them meanwhile (Lightning takes SIGTERM)."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if processes.rank() > 0:
            return  # process 0 says when
        if not self.waiting or self.came is not None:
            raise Interrupted(number)
        self.came = number


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` after every epoch, and within one every `steps` steps or `seconds` seconds (0: not);
    `best.ckpt` after an epoch whose `monitor` is lower than ever (None: after every epoch).

    A file is written beside and renamed; the `last.ckpt` before becomes `previous.ckpt`.
    """

    def __init__(
        self, folder: Path, monitor: str | None, steps: int, seconds: float, signals: Signals
    ) -> None:
        if not (steps >= 0 and seconds >= 0):
            raise UserError("trainer.checkpoint_steps and trainer.checkpoint_seconds must be at least 0")
        self.folder, self.monitor, self.steps, self.seconds = folder, monitor, steps, seconds
        self.signals = signals
        self.best = float("inf")
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = time.monotonic()
        self.signals.waiting = True
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # the epoch ends, and with it a checkpoint comes
            return
        due = self.steps > 0 and trainer.global_step % self.steps == 0
        late = self.seconds > 0 and time.monotonic() - self._saved >= self.seconds
        stop = _agreed(trainer, self.signals.came is not None)
        if stop or due or _agreed(trainer, late):
            self._save(trainer)
        if stop:
            raise Interrupted(self.signals.came or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = None if self.monitor is None else trainer.callback_metrics[self.monitor].item()
        improved = score is None or score < self.best
        if score is not None and improved:
            self.best = score
        self._save(trainer, improved)
        if _agreed(trainer, self.signals.came is not None):
            raise Interrupted(self.signals.came or signal.SIGTERM)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.waiting = False

    def _save(self, trainer: L.Trainer, best: bool = False) -> None:
        for name, parameter in trainer.lightning_module.named_parameters():
            if not torch.isfinite(parameter).all():  # a loss can be finite, and the step after it not
                raise Diverged(f"step {trainer.global_step}: weights of {name} are no longer finite")
        self.folder.mkdir(exist_ok=True)
        place = self.folder.stat()
        partial, copy = (self.folder / f".{name}.{os.getpid()}" for name in ("partial", "best"))
        try:
            trainer.save_checkpoint(partial)  # all processes take part, the first writes
            if not trainer.is_global_zero:
                return
            if not os.path.samestat(place, self.folder.stat()):  # it went away, and Lightning made it anew
                shutil.rmtree(self.folder)
                self.folder.parent.rmdir()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
            if best:
                shutil.copyfile(partial, copy)
                os.replace(copy, self.folder / "best.ckpt")
            last, previous = (self.folder / f"{name}.ckpt" for name in LAST)
            if last.exists():
                os.replace(last, previous)
            os.replace(partial, last)
        finally:
            for half in (partial, copy):  # on a full disk the first thing to give back
                half.unlink(missing_ok=True)
        self._saved = time.monotonic()


def _agreed(trainer: L.Trainer, wish: bool) -> bool:
    """Whether any process of the run wishes it: they must all save or stop at the same step."""
    return wish if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(wish, all=False)


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
        raise UserError(
            f"{path} is broken or no checkpoint of plain tensors ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint: it holds no weights")
    return content


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint in `folder` that can be read (None where there is none), and the broken ones
    before it."""
    broken = []
    for name in LAST:
        path = folder / f"{name}.ckpt"
        if path.is_file():
            try:
                load_checkpoint(path)
            except UserError:
                broken.append(path)
                continue
            return path, broken
    return None, broken
