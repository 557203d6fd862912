"""One configuration, trained and tested into one run folder."""

from __future__ import annotations

import json
import logging
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cnnlab import Diverged, UserError, hardware, report
from cnnlab.checkpoints import Checkpoints, Signals, load_checkpoint, newest_whole
from cnnlab.classifier import Classifier
from cnnlab.data.lines import LineSplit
from cnnlab.data.splits import LabData
from cnnlab.explain.grading import Watch, sample_of
from cnnlab.files import write_whole
from cnnlab.layers import parameter_counts
from cnnlab.progress import Display, Journal
from cnnlab.runs import Run, begin_with, build_classifier, build_data, commit, versions


def train_run(cfg: DictConfig) -> float:
    """Train and test `cfg` as one Hydra job; returns the best joint accuracy on the validation split
    (on the training split where there is no validation).

    Raises `UserError` for what the user can mend; then no folder is left that was not there before.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with Signals() as signals:
            if cfg.resume is None:
                _claim(folder)
                base = Run(str(cfg.from_run)) if cfg.from_run is not None else None
                cfg, ckpt = _named(_based(cfg, base)), None
            else:
                run, base = Run(str(cfg.resume)), None
                cfg, ckpt = _resumed(run, cfg), _where_to_go_on(run)
                _drop_if_empty(folder)
                folder = run.path
            _quiet()
            data = build_data(cfg)
            _seed(cfg.seed)
            classifier = build_classifier(cfg, data)
            if base is not None:
                begin_with(classifier, base)
            return _Job(cfg, folder, data, classifier, signals).run(ckpt)
    except BaseException:
        _drop_if_empty(folder)
        raise


class _Job:
    """A run while it goes on."""

    def __init__(
        self, cfg: DictConfig, folder: Path, data: LabData, classifier: Classifier, signals: Signals
    ) -> None:
        self.cfg, self.folder, self.data, self.classifier = cfg, folder, data, classifier
        self.console = Console()
        data.setup()
        self.journal = Journal(folder, _watch(cfg.watch, data))
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
        self.trainer = _trainer(cfg, folder, [self.journal, Display(self.console, self.journal), checkpoints])

    def run(self, ckpt: Path | None) -> float:
        (self.folder / "summary.json").unlink(missing_ok=True)  # a resumed run has not ended yet
        write_whole(self.folder / "config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
        write_whole(self.folder / "model.txt", report.model_text(self.classifier.net, self.data.in_channels))
        self.console.print(
            f"{self.cfg.experiment}, seed {self.cfg.seed}: {_machine(self.trainer)}", highlight=False
        )
        try:
            self.trainer.fit(self.classifier, datamodule=self.data, ckpt_path=ckpt, weights_only=True)
            self._test()
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted")
            go_on = f"\ninterrupted; go on with: python -m cnnlab.train resume={self.folder}"
            self.console.print(go_on, soft_wrap=True, highlight=False)
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
        return self._best_accuracy()

    def _test(self) -> None:
        """Meet the test split once, with the best weights, and write what is left to write."""
        best = load_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        self.classifier.load_state_dict(best["state_dict"])
        self.trainer.test(self.classifier, datamodule=self.data, verbose=False)
        test = report.results(self.classifier)
        summary = self._summary("finished", best_epoch=best["epoch"] + 1, test=test)
        report.write(self.folder, summary, self.journal.rows, self.data, self.classifier, self.cfg.watch)
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        (self.folder / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
        report.closing_lines(self.console, self.folder, summary)

    def _best_accuracy(self) -> float:
        rows = self.journal.rows
        name = "val_joint_accuracy" if "val_joint_accuracy" in rows[0] else "train_joint_accuracy"
        return max(row[name] for row in rows)

    def _summary(self, status: str, **more: Any) -> dict[str, Any]:
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


def _trainer(cfg: DictConfig, folder: Path, callbacks: list[L.Callback]) -> L.Trainer:
    if cfg.trainer.max_epochs < 1:
        raise UserError(f"trainer.max_epochs={cfg.trainer.max_epochs} must be at least 1")
    try:
        return L.Trainer(
            max_epochs=cfg.trainer.max_epochs,
            accelerator=cfg.trainer.accelerator,
            devices=cfg.trainer.devices,
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


def _named(cfg: DictConfig) -> DictConfig:
    """`cfg` with the names of the chosen experiment and options in front."""
    choices = HydraConfig.get().runtime.choices
    options = {group: option for group, option in choices.items() if "/" not in group}
    return OmegaConf.create({"experiment": options.pop("experiment"), "options": options, **cfg})


def _based(cfg: DictConfig, base: Run | None) -> DictConfig:
    """`cfg` with the network of the run it begins with."""
    if base is None:
        if cfg.train_heads:
            raise UserError(
                f"train_heads={cfg.train_heads}: the rest must have been trained before; set from_run=<run>"
            )
        return cfg
    for override in HydraConfig.get().overrides.task:
        if override.lstrip("+~").startswith(("net=", "net.")):
            raise UserError(f"from_run takes the network from the run: drop {override}")
    based = cfg.copy()
    based.net, based.from_run = base.config.net, str(base.path)
    return based


def _seed(seed: int) -> None:
    try:
        L.seed_everything(seed, verbose=False)
    except ValueError as error:
        raise UserError(f"seed={seed}: {error}") from error


def _claim(folder: Path) -> None:
    """Make the folder ours. Nothing in it is ever written over."""
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another hydra.run.dir, or go on with resume={folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}; set hydra.run.dir=<folder>")


def _drop_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _where_to_go_on(run: Run) -> Path | None:
    """The newest checkpoint of a run that can be read; None, so the beginning, where there is none yet.

    Raises `UserError` where there are checkpoints and none can be read.
    """
    path, broken = newest_whole(run.path / "checkpoints")
    if broken and path is None:
        raise UserError(f"{broken[0]} is broken and there is none before it; train anew")
    for name in broken:
        print(f"{name} is broken; going on from {path}")
    if path is None:
        print(f"{run.path} stopped before its first checkpoint; it begins again")
    return path


def _resumed(run: Run, cfg: DictConfig) -> DictConfig:
    """The run's own configuration; of the command line's only `trainer.max_epochs` counts, to raise it."""
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in ("resume", "trainer.max_epochs") and (key, value) != (
            "experiment",
            run.config.experiment,
        ):
            raise UserError(
                "resume takes everything from the run, and only trainer.max_epochs may be raised: "
                f"drop {override}"
            )
    config = run.config.copy()
    if any(override.startswith("trainer.max_epochs=") for override in HydraConfig.get().overrides.task):
        if cfg.trainer.max_epochs < config.trainer.max_epochs:
            raise UserError(
                f"the run has trainer.max_epochs={config.trainer.max_epochs}; it can only be raised"
            )
        config.trainer.max_epochs = cfg.trainer.max_epochs
    if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
        raise UserError(f"{run.path} is finished; raise trainer.max_epochs to train it longer")
    return config


def _machine(trainer: L.Trainer) -> str:
    return f"{hardware.description()}, {trainer.precision}"


def _quiet() -> None:
    """The console is ours: no advice from Lightning, and none about what it itself calls of torch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for advice in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*in eval mode at the start of training.*",  # what train_heads leaves out
        "Total length of .list. across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", advice)
