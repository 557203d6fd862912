"""What a training run says while it goes on: rows for `metrics.csv`, a live bar or a line an epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cnnlab import processes
from cnnlab.classifier import Classifier
from cnnlab.explain.grading import Watch
from cnnlab.files import to_csv, write_whole

Row = dict[str, float]


def best_accuracy(rows: list[Row]) -> float:
    """The highest joint accuracy of an epoch on validation, on training where there is no validation."""
    name = "val_joint_accuracy" if "val_joint_accuracy" in rows[0] else "train_joint_accuracy"
    return max(row[name] for row in rows)


class Journal(L.Callback):
    """One row an epoch, written to `metrics.csv` and kept in the checkpoint, so that a resumed run has
    the rows of before and no others.

    `watch` adds what it finds in the network. `seconds` is the time in training steps, `val_seconds` the time
    in validation.
    """

    def __init__(self, folder: Path, watch: Watch | None = None) -> None:
        self.folder, self.watch = folder, watch
        self.rows: list[Row] = []
        self._start = self._trained = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "elapsed": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self._start = time.perf_counter() - state_dict["elapsed"]  # where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._trained = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        total = time.perf_counter() - self._start
        row: Row = {"epoch": trainer.current_epoch + 1}
        for stage in ("train", "val") if trainer.val_dataloaders else ("train",):
            row |= {f"{stage}_{name}": value for name, value in pl_module.tally(stage).compute().items()}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= {f"weight_{name}": weight for name, weight in pl_module.weighting.by_head().items()}
        trained = self._trained or total
        row |= {"seconds": round(trained, 3), "val_seconds": round(total - trained, 3)}
        if self.watch is not None:
            row |= self.watch(pl_module.net)
        self.rows.append(row)
        write_whole(self.folder / "metrics.csv", to_csv(self.rows))


class Log:
    """Says it on the console, and keeps it in the run's `log.txt`: jobs that run at once share a console."""

    def __init__(self, folder: Path) -> None:
        self.console, self.file = Console(quiet=processes.rank() > 0), folder / "log.txt"  # one voice

    def say(self, what: RenderableType) -> None:
        self.console.print(what, highlight=False, soft_wrap=True)
        self.keep(what)

    def keep(self, what: RenderableType) -> None:
        """Only in the file."""
        with self.file.open("a", encoding="utf-8") as file:
            Console(file=file, width=200).print(what, highlight=False, soft_wrap=True)


class Display(L.Callback):
    """On a terminal a live bar with the heads' running accuracies; a line at the end of every epoch."""

    refresh = 0.5  # seconds between two looks at the running means

    def __init__(self, log: Log, journal: Journal) -> None:
        self.run_log, self.journal = log, journal
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=log.console,
            transient=True,
            disable=not log.console.is_terminal,
        )
        self._looked = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.start()
        self.task = self.bar.add_task("", epoch="", state="")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.reset(self.task, total=trainer.num_training_batches, epoch=epoch, state="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar.disable or time.monotonic() - self._looked < self.refresh:
            return
        assert isinstance(pl_module, Classifier)
        # Of several processes all would have to say their numbers at once.
        alone = trainer.world_size == 1
        state = _accuracies(pl_module.tally("train").compute(), pl_module) if alone else ""
        self.bar.update(self.task, completed=batch_idx + 1, state=state)
        self._looked = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        row = self.journal.rows[-1]
        stage = "val" if "val_loss" in row else "train"
        means = {key.removeprefix(f"{stage}_"): value for key, value in row.items()}
        losses = "  ".join(f"{name} loss {row[f'{name}_loss']:.4f}" for name in ("train", stage))
        accuracies = f"{stage} {_accuracies(means, pl_module)}"
        seconds = row["seconds"] + row["val_seconds"]
        self.run_log.say(
            f"epoch {int(row['epoch'])}/{trainer.max_epochs}  {losses}  {accuracies}  {seconds:.1f} s"
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


def _accuracies(means: dict[str, float], classifier: Classifier) -> str:
    joint = [f"joint {means['joint_accuracy']:.2%}"] if len(classifier.heads) > 1 else []
    return "  ".join(
        joint + [f"{head.name} {means[f'{head.name}_accuracy']:.2%}" for head in classifier.heads]
    )
