"""From a configuration to a run folder: data set, classifier, trainer; fit, test, report."""

from __future__ import annotations

import atexit
import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf

from cnnlab import hardware, log
from cnnlab.build import as_user_error, build_classifier, build_datamodule, build_trainer, user_errors
from cnnlab.callbacks.checkpoint import load_checkpoint
from cnnlab.callbacks.graceful_shutdown import interruptible
from cnnlab.callbacks.metrics_history import best_accuracy
from cnnlab.errors import UserError
from cnnlab.log import is_main_process
from cnnlab.report import RunReport
from cnnlab.runs import Run, load_initial_weights


def train(cfg: DictConfig, several_processes: bool = True) -> float:
    """Train and test the network of `cfg`, and write the run folder `cfg.paths.output_dir`. Return the best accuracy,
    every head right, on the validation split (on the training split where there is no validation).

    `cfg` is the composed configuration (conf/train.yaml) with the chosen `experiment` and `options`. `cfg.ckpt_path` is
    the checkpoint to go on from, or None; `cfg.job_threads` the number of threads, None for all. Hydra's state is not
    read. Without `several_processes` a configuration that would start some is refused.

    Raises `UserError` for what the user can mend; where the training had not begun, no folder is left that was not
    there before.
    """
    folder = Path(cfg.paths.output_dir)
    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("paths", "ckpt_path", "job_threads")])
    folder.mkdir(parents=True, exist_ok=True)
    log.quiet_lightning()
    hardware.disable_malloc_trim()
    with interruptible(), locked(folder), log.run_log(folder), hardware.limit_threads(cfg.job_threads):
        datamodule = build_datamodule(config, "fit")
        with user_errors(f"seed={config.seed}"):
            L.seed_everything(config.seed, verbose=False)
        classifier = build_classifier(config, datamodule)
        if config.init_from is not None and cfg.ckpt_path is None:
            load_initial_weights(classifier, Run(config.init_from))
        trainer = build_trainer(config, folder)
        if trainer.world_size > 1 and not several_processes:
            raise UserError(
                "a job of a sweep, or a training from Python, cannot run in several processes: start it by itself, "
                "with python -m cnnlab.train"
            )
        if datamodule.batch_size % trainer.world_size:
            raise UserError(
                f"data.batch_size={datamodule.batch_size} cannot be shared out to {trainer.world_size} processes"
            )

        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            raise UserError(
                f"trainer.strategy={config.trainer.strategy} cannot start a whole training; use trainer=ddp, whose "
                "processes start by themselves"
            )
        if trainer.strategy.launcher is not None:  # whatever ends this process ends those it started
            atexit.register(trainer.strategy.launcher.kill, signal.SIGKILL)

        run = RunReport(config, folder, trainer, classifier, datamodule)
        run.begin()
        try:
            trainer.fit(classifier, datamodule=datamodule, ckpt_path=cfg.ckpt_path, weights_only=True)
            if not trainer.global_step:
                raise UserError("no step was trained; raise trainer.max_time")
            run.keep_last_where_none_is_best()
            if run.best is not None:  # by hand: Lightning would also set the callbacks back to that epoch
                classifier.load_state_dict(load_checkpoint(run.best)["state_dict"])
            trainer.test(classifier, datamodule=datamodule, verbose=False)
            run.finish()
        except (KeyboardInterrupt, SystemExit):
            run.interrupted()
            raise
        except Exception as error:
            mistake = as_user_error(error, folder)
            run.failed(mistake)
            if mistake is error:
                raise
            raise mistake from error
        return best_accuracy(run.rows)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process trains in `folder`: the kernel gives the lock back when this one dies. What was
    reserved and not used goes away. Raises `UserError` where another one does."""
    if not is_main_process():
        yield
        return
    with (folder / "log.txt").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it, or end it") from None
        try:
            yield
        finally:
            if [path.name for path in folder.glob("*")] == ["log.txt"] and not (folder / "log.txt").stat().st_size:
                (folder / "log.txt").unlink()
