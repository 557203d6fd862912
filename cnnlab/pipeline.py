"""From a configuration to a run folder: data module, LightningModule, trainer; fit, test, report."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning.pytorch as L
from filelock import FileLock, Timeout
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf

from cnnlab.reporting.run_report import RunReport
from cnnlab.run import RunFolder, load_initial_weights
from cnnlab.training.build import build_classifier, build_datamodule, build_trainer
from cnnlab.training.callbacks import interruptible, kept_accuracy
from cnnlab.utils import console, hardware
from cnnlab.utils.checkpoints import last_valid_checkpoint, load_checkpoint
from cnnlab.utils.errors import Diverged, UserError, one_line, raised_by, user_errors


def train(cfg: DictConfig, several_processes: bool = True) -> float:
    """Train and test a network, and write the run folder `cfg.paths.output_dir`.

    Args:
        cfg: The composed configuration (conf/train.yaml) with the chosen `experiment` and `options`; `cfg.ckpt_path` is
            the checkpoint to go on from, or None, `cfg.job_threads` the number of threads, None for all. Hydra's state
            is not read.
        several_processes: Whether the trainer may start other processes.

    Returns:
        The best validation accuracy with every head right (of training, without validation).

    Raises:
        UserError: For errors that the user can fix. An empty run folder is removed.
    """
    folder = Path(cfg.paths.output_dir)
    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("paths", "ckpt_path", "job_threads")])
    folder.mkdir(parents=True, exist_ok=True)
    console.quiet_lightning()
    hardware.disable_malloc_trim()
    with interruptible(), locked(folder), console.run_log(folder), hardware.limit_threads(cfg.job_threads):
        datamodule = build_datamodule(config, "fit")
        with user_errors(f"seed={config.seed}"):
            L.seed_everything(config.seed, verbose=False)
        classifier = build_classifier(config, datamodule)
        if config.init_from is not None and cfg.ckpt_path is None:
            load_initial_weights(classifier, RunFolder(config.init_from))
        trainer = build_trainer(config, folder)
        _check_processes(trainer, str(config.trainer.get("strategy")), datamodule.batch_size, several_processes)

        report = RunReport(config, folder, trainer, classifier, datamodule)
        report.begin()
        try:
            trainer.fit(classifier, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
            if not trainer.global_step:
                raise UserError("no step was trained; raise trainer.max_time")
            report.keep_last_where_none_is_best()
            if report.best is not None:  # by hand: Lightning would also set the callbacks back to that epoch
                classifier.load_state_dict(load_checkpoint(report.best)["state_dict"])
            trainer.test(classifier, datamodule=datamodule, verbose=False)
            report.finish()
        except (KeyboardInterrupt, SystemExit):
            report.interrupted()
            raise
        except Exception as error:
            explained = _as_user_error(error, folder)
            report.failed(explained)
            if explained is error:
                raise
            raise explained from error
        return kept_accuracy(report.summary)


def _check_processes(trainer: L.Trainer, strategy: str, batch_size: int, several_processes: bool) -> None:
    """Raise `UserError` where the trainer's processes do not fit, and let this process end those it starts."""
    if trainer.world_size > 1 and not several_processes:
        raise UserError(
            "a job of a sweep, or a training from Python, cannot run in several processes: start it by itself, with "
            "python -m cnnlab.train"
        )
    if batch_size % trainer.world_size:
        raise UserError(f"data.batch_size={batch_size} cannot be shared out to {trainer.world_size} processes")
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"trainer.strategy={strategy} cannot start a whole training; use trainer=ddp, whose processes start by "
            "themselves"
        )
    if trainer.strategy.launcher is not None:
        atexit.register(trainer.strategy.launcher.kill, getattr(signal, "SIGKILL", signal.SIGTERM))


def _as_user_error(error: Exception, folder: Path) -> Exception:
    """Return a `UserError` with the fix for an error of a training, or the error itself."""
    if isinstance(error, Diverged):
        path, _ = last_valid_checkpoint(folder)
        kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        return UserError(f"{error}; {kept}; lower optimizer.lr, or try trainer.precision=32-true")
    if isinstance(error, UserError) and "Original Traceback" in str(error):  # of a worker process of the DataLoader
        return UserError(str(error).strip().splitlines()[-1].partition(": ")[2])
    for package, group in (("lightning", "trainer"), ("torch.optim", "optimizer")):
        if not isinstance(error, UserError) and raised_by(error, package):
            return UserError(f"{group}: {one_line(error)}")
    return error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process train in `folder`; the system releases the lock when this one dies. An empty log is removed.
    Raises `UserError` where another process trains there."""
    if not console.is_main_process():
        yield
        return
    file = folder / ".lock"
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is training in {folder}; wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # another process may open it at this moment
            file.unlink()
        if [path.name for path in folder.glob("*")] == ["log.txt"] and not (folder / "log.txt").stat().st_size:
            (folder / "log.txt").unlink()
