"""One configuration, trained and tested into one run folder."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from cnnlab import Diverged, UserError, hardware, processes, report
from cnnlab.checkpoints import Checkpoints, Signals, load_checkpoint, newest_whole
from cnnlab.classifier import Classifier
from cnnlab.data.lines import LineSplit
from cnnlab.data.splits import LabData
from cnnlab.explain.grading import Watch, sample_of
from cnnlab.files import read_csv, write_whole
from cnnlab.layers import parameter_counts
from cnnlab.progress import Display, Journal, Log, best_accuracy
from cnnlab.runs import begin_with, build_classifier, build_data, commit, versions
from cnnlab.start import Start, begin, drop_if_unused


def train_run(cfg: DictConfig) -> float:
    """Train and test `cfg` as one Hydra job; returns the best joint accuracy on the validation split
    (on the training split where there is no validation).

    Raises `UserError` for what the user can mend; then no folder is left that was not there before.
    """
    with Signals() as signals, processes.own_folder(Path(HydraConfig.get().runtime.output_dir)) as folder:
        try:
            start = begin(cfg, folder)
            if start.done:
                return best_accuracy(read_csv(start.folder / "metrics.csv"))
            if processes.rank() > 0:
                start = replace(start, folder=folder)  # the run's own is for process 0 alone
            trainer, launcher = start.cfg.trainer, HydraConfig.get().launcher
            with (
                hardware.shared_cores(trainer.threads, launcher, trainer.devices),
                processes.together(trainer.devices, start.words),
            ):
                return _begun(start, signals)
        finally:
            drop_if_unused(folder)


def _begun(start: Start, signals: Signals) -> float:
    """The run from where it starts; a job of a sweep that fails leaves a folder that says so."""
    try:
        quiet()
        data = build_data(start.cfg)
        _seed(start.cfg.seed)
        classifier = build_classifier(start.cfg, data)
        if start.base is not None:
            begin_with(classifier, start.base)
        return Job(start.cfg, start.folder, data, classifier, signals).run(start.ckpt)
    except Exception as error:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if in_sweep and not (start.folder / "summary.json").exists():
            with suppress(OSError):
                write_whole(start.folder / "config.yaml", OmegaConf.to_yaml(start.cfg, resolve=True))
                summary = {"status": "failed", "error": str(error), "seed": start.cfg.seed}
                write_whole(start.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
                Log(start.folder).keep(Text(traceback.format_exc()))
        raise


class Job:
    """A run while it goes on."""

    def __init__(
        self, cfg: DictConfig, folder: Path, data: LabData, classifier: Classifier, signals: Signals
    ) -> None:
        self.cfg, self.folder, self.data, self.classifier = cfg, folder, data, classifier
        self.log = Log(folder)
        data.setup("fit")
        self.journal = Journal(folder, _watch(cfg.watch, data))
        hardware.spare_gpu_search()
        if cfg.trainer.keep_memory:
            hardware.keep_memory()
        if cfg.trainer.channels_last:
            classifier.net.to(memory_format=torch.channels_last)
        checkpoints = Checkpoints(
            folder / "checkpoints",
            "val_errors" if len(data.splits["val"]) else None,  # without validation the last is the best
            cfg.trainer.checkpoint_steps,
            cfg.trainer.checkpoint_seconds,
            signals,
        )
        callbacks = [self.journal, Display(self.log, self.journal), checkpoints]
        self.trainer = _trainer(cfg, folder, callbacks, cfg.trainer.devices)

    def run(self, ckpt: Path | None) -> float:
        (self.folder / "summary.json").unlink(missing_ok=True)  # a resumed run has not ended yet
        write_whole(self.folder / "config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
        write_whole(self.folder / "model.txt", report.model_text(self.classifier.net, self.data.in_channels))
        self.log.say(f"{self.cfg.experiment}, seed {self.cfg.seed}: {_machine(self.trainer)}")
        try:
            self.trainer.fit(self.classifier, datamodule=self.data, ckpt_path=ckpt, weights_only=True)
            processes.part()
            if processes.rank() == 0:
                self._test()
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted")
            self.log.say(f"\ninterrupted; go on with: python -m cnnlab.train resume={self.folder}")
            raise
        except Diverged as error:
            path, _ = newest_whole(self.folder / "checkpoints")
            kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
            self._end("failed", error=f"{error}; {kept}")
            raise UserError(
                f"{error}; {kept}; lower optimizer.lr, or try trainer.precision=32-true"
            ) from error
        except Exception as error:
            self._end("failed", error=f"{type(error).__name__}: {error}")
            raise
        return best_accuracy(self.journal.rows)

    def _test(self) -> None:
        """Meet the test split once, with the best weights, and write what is left to write."""
        best = load_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        self.classifier.load_state_dict(best["state_dict"])
        several = self.trainer.world_size > 1
        with processes.alone():
            trainer = _trainer(self.cfg, self.folder, [], 1) if several else self.trainer
            trainer.test(self.classifier, datamodule=self.data, verbose=False)
        test = report.results(self.classifier)
        summary = self._summary("finished", best_epoch=best["epoch"] + 1, test=test)
        report.write(self.folder, summary, self.journal.rows, self.data, self.classifier, self.cfg.watch)
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        (self.folder / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
        report.closing_lines(self.log, self.folder, summary)

    def _summary(self, status: str, **more: Any) -> dict[str, Any]:
        self.data.setup()  # an interrupted run has no test split yet
        rows = self.journal.rows
        images = len(self.data.splits["train"]) * len(rows)
        steps = sum(row["seconds"] for row in rows)
        return {
            "status": status,
            "experiment": self.cfg.experiment,
            "seed": self.cfg.seed,
            "versions": versions(),
            "commit": commit(),
            "machine": _machine(self.trainer),
            "parameters": parameter_counts(self.classifier.net),
            "data": self.data.counts(epochs=max(1, len(rows))),
            "epochs": len(rows),
            "train_seconds": round(sum(row["seconds"] + row["val_seconds"] for row in rows), 1),
            "images_per_second": round(images / steps) if steps else None,
            **more,
        }

    def _end(self, status: str, **more: Any) -> None:
        with suppress(OSError):  # where the disk is full or the folder gone, that is what must be said
            if status == "failed":
                self.log.keep(Text(traceback.format_exc()))
            summary = self._summary(status, **more)
            write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _watch(count: int, data: LabData) -> Watch | None:
    """What grades the heatmaps after each epoch, on validation images (else on training ones)."""
    if count == 0:
        return None
    split = data.splits["val"] if len(data.splits["val"]) else data.splits["train"]
    if not isinstance(split, LineSplit):
        raise UserError(f"watch={count}: this data set has no true pixels to grade a heatmap by, lines have")
    return Watch(data.heads, sample_of(split, count), split.truths)


def _trainer(cfg: DictConfig, folder: Path, callbacks: list[L.Callback], devices: int) -> L.Trainer:
    if cfg.trainer.max_epochs < 1:
        raise UserError(f"trainer.max_epochs={cfg.trainer.max_epochs} must be at least 1")
    if devices < 1:
        raise UserError(f"trainer.devices={devices} must be at least 1")
    try:
        return L.Trainer(
            max_epochs=cfg.trainer.max_epochs,
            accelerator=cfg.trainer.accelerator,
            devices=devices,
            num_nodes=processes.machines(devices),
            strategy="ddp" if devices > 1 else "auto",
            use_distributed_sampler=False,  # the data set shares itself out, and counts no image twice
            precision=hardware.precision(cfg.trainer.precision),  # type: ignore[arg-type]
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _seed(seed: int) -> None:
    try:
        L.seed_everything(seed, verbose=False)
    except ValueError as error:
        raise UserError(f"seed={seed}: {error}") from error


def _machine(trainer: L.Trainer) -> str:
    several = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"{hardware.description()}{several}, {trainer.precision}"


def quiet() -> None:
    """The console is ours: no advice from Lightning, and none about what it itself calls of torch."""
    for part in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(part).setLevel(logging.ERROR)
    for advice in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # the tallies are in step already
        ".*in eval mode at the start of training.*",  # what train_heads leaves out
        "Total length of .list. across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", advice)
