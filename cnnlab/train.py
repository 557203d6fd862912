"""python -m cnnlab.train: train a network, test it once, and write a run folder."""

from __future__ import annotations

import atexit
import json
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from cnnlab.cli import command, named_config
from cnnlab.errors import Diverged, UserError
from cnnlab.io import write_atomically, write_json
from cnnlab.log import is_main_process

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: DictConfig) -> float:
    """Train and test what `cfg` says; returns the best joint accuracy on the validation split (on the training
    split where there is no validation).

    Raises `UserError` for what the user can mend; then no folder is left that was not there before.
    """
    # torch comes with these: a typo is answered before.
    import lightning.pytorch as L

    from cnnlab import hardware, log, report
    from cnnlab.build import build_classifier, build_datamodule, build_trainer, raised_by, refused
    from cnnlab.callbacks.checkpoint import last_valid_checkpoint, load_checkpoint
    from cnnlab.callbacks.graceful_shutdown import interruptible
    from cnnlab.callbacks.metrics_history import best_accuracy
    from cnnlab.run_plan import locked, plan_run
    from cnnlab.runs import Run, load_initial_weights

    plan = plan_run(cfg)
    config, folder = plan.config, plan.folder
    if plan.finished:
        return best_accuracy(Run(folder).metrics)

    hydra = HydraConfig.get()
    log.quiet_lightning()
    hardware.disable_malloc_trim()
    with (
        interruptible(),
        locked(folder),
        log.run_log(folder),
        hardware.limit_threads(config.threads, hydra.launcher),
    ):
        datamodule = build_datamodule(config, "fit")
        with refused(f"seed={config.seed}"):
            L.seed_everything(config.seed, verbose=False)
        classifier = build_classifier(config, datamodule)
        if plan.init_from is not None:
            load_initial_weights(classifier, plan.init_from)
        trainer = build_trainer(config, folder)
        if trainer.world_size > 1 and hydra.mode == RunMode.MULTIRUN:
            raise UserError("a job of a sweep cannot train in several processes: start each job by itself")
        if datamodule.batch_size % trainer.world_size:
            raise UserError(
                f"data.batch_size={datamodule.batch_size} cannot be shared out to {trainer.world_size} processes"
            )

        if trainer.strategy.launcher is not None:  # whatever ends this process ends those it started
            atexit.register(trainer.strategy.launcher.kill, signal.SIGKILL)

        run = report.RunReport(config, folder, trainer, classifier, datamodule)
        run.begin()
        try:
            trainer.fit(classifier, datamodule=datamodule, ckpt_path=plan.ckpt_path, weights_only=True)
            if run.best is not None:  # by hand: Lightning would also set the callbacks back to that epoch
                classifier.load_state_dict(load_checkpoint(run.best)["state_dict"])
            trainer.test(classifier, datamodule=datamodule, verbose=False)
        except Diverged as error:
            path, _ = last_valid_checkpoint(folder / "checkpoints")
            kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
            raise UserError(f"{error}; {kept}; lower optimizer.lr, or try trainer.precision=32-true") from error
        except Exception as error:
            if not raised_by(error, "lightning"):
                raise
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        except (KeyboardInterrupt, SystemExit):
            run.interrupted()
            raise
        run.finish()
        return best_accuracy(run.rows)


def record_failure(cfg: DictConfig, error: Exception) -> None:
    """Write `status: failed`, the error and its traceback into the folder of a run that had begun, and of a job in a
    sweep."""
    folder = Path(str(cfg.get("resume") or "") or HydraConfig.get().runtime.output_dir)
    file = folder / "summary.json"
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    begun = summary.get("status") == "unfinished"
    first_words = not summary and HydraConfig.get().mode == RunMode.MULTIRUN
    if is_main_process() and folder.is_dir() and (begun or first_words):
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_json(file, {**summary, "seed": cfg.get("seed"), "status": "failed", "error": text})
        if not (folder / "config.yaml").is_file():
            write_atomically(folder / "config.yaml", OmegaConf.to_yaml(named_config(cfg), resolve=True))


if __name__ == "__main__":
    command("train", train, record_failure)
