"""From a configuration to a run folder: data set, classifier, trainer; fit, test, report."""

from __future__ import annotations

import atexit
import logging
import signal

import lightning.pytorch as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from omegaconf import DictConfig

from cnnlab import hardware, log
from cnnlab.build import build_classifier, build_datamodule, build_trainer, explained, refused
from cnnlab.callbacks.checkpoint import load_checkpoint
from cnnlab.callbacks.graceful_shutdown import interruptible
from cnnlab.callbacks.metrics_history import best_accuracy
from cnnlab.cli import IN_PYTHON
from cnnlab.errors import UserError
from cnnlab.report import RunReport
from cnnlab.run_plan import locked, plan_run
from cnnlab.runs import Run, load_initial_weights


def train(cfg: DictConfig) -> float:
    """Train and test what `cfg` says; returns the best joint accuracy on the validation split (on the training
    split where there is no validation).

    Raises `UserError` for what the user can mend; where the training had not begun, no folder is left that was not
    there before.
    """
    plan = plan_run(cfg)
    config, folder = plan.config, plan.folder
    if plan.finished:
        return best_accuracy(Run(folder).metrics)

    hydra = HydraConfig.get()
    log.quiet_lightning()
    hardware.disable_malloc_trim()
    with interruptible(), locked(folder), log.run_log(folder), hardware.limit_threads(config.threads, hydra.launcher):
        datamodule = build_datamodule(config, "fit")
        with refused(f"seed={config.seed}"):
            L.seed_everything(config.seed, verbose=False)
        classifier = build_classifier(config, datamodule)
        if plan.init_from is not None:
            load_initial_weights(classifier, plan.init_from)
        trainer = build_trainer(config, folder)
        if trainer.world_size > 1 and (hydra.mode == RunMode.MULTIRUN or hydra.job.name == IN_PYTHON):
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

        if hydra.mode == RunMode.MULTIRUN:
            words = [word for word in hydra.overrides.task if not word.startswith("experiment=")]
            logging.getLogger(__name__).info(f"\njob {hydra.job.num}: {' '.join(words)}")
        run = RunReport(config, folder, trainer, classifier, datamodule)
        run.begin()
        try:
            trainer.fit(classifier, datamodule=datamodule, ckpt_path=plan.ckpt_path, weights_only=True)
            run.keep_last_where_none_is_best()
            if run.best is not None:  # by hand: Lightning would also set the callbacks back to that epoch
                classifier.load_state_dict(load_checkpoint(run.best)["state_dict"])
            trainer.test(classifier, datamodule=datamodule, verbose=False)
            run.finish()
        except (KeyboardInterrupt, SystemExit):
            run.interrupted()
            raise
        except Exception as error:
            mistake = explained(error, folder)
            run.failed(mistake)
            if mistake is error:
                raise
            raise mistake from error
        return best_accuracy(run.rows)
