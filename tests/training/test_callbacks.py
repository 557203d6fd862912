"""Callbacks and loggers by configuration, and the metrics that they read."""

from __future__ import annotations

import csv
import math
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnnlab.api import Run
from cnnlab.training.build import build_classifier, build_datamodule
from cnnlab.training.callbacks import GracefulShutdown, Interrupted, ProgressBar, epoch_line
from cnnlab.training.checkpoint import RunCheckpoint
from cnnlab.utils.checkpoints import load_checkpoint
from cnnlab.utils.errors import UserError
from tests.conftest import TINY_LINES, in_process, run_train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CURVES = {"train/loss", "train/acc", "val/loss", "val/acc", "val/angle/acc", "val/colour/loss", "test/acc"}


@pytest.mark.slow
def test_csv_and_tensorboard_at_once_get_the_curves_and_the_pictures(tmp_path: Path) -> None:
    folder = run_train(
        tmp_path / "run",
        *TINY_LINES,
        "logger=[csv,tensorboard]",
        "callbacks=[default,lr_monitor]",
        "trainer.log_every_n_steps=1",
    )
    (metrics,) = (folder / "csv").rglob("metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= CURVES
    assert any(name.startswith("lr-") for name in rows[0])
    events = EventAccumulator(str(next((folder / "tensorboard").rglob("events*")).parent)).Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert [round(event.value, 5) for event in events.Scalars("val/acc")] == [
        round(row["val/acc"], 5) for row in Run(folder).metrics
    ]
    assert {"figures/curves", "figures/confusion_angle"} <= set(events.Tags()["images"])


@pytest.mark.slow
def test_early_stopping_and_clipping_do_what_they_say(tmp_path: Path) -> None:
    words = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.min_delta=100", "trainer.max_epochs=9")
    folder = run_train(
        tmp_path / "run", *TINY_LINES, *words, "callbacks.early_stopping.patience=2", "trainer.gradient_clip_val=1e-9",
        "optimizer=sgd", "optimizer.weight_decay=0",
    )  # fmt: skip
    rows = Run(folder).metrics
    assert len(rows) == 3  # the first is the best, two that are not better by 100 follow
    assert rows[0]["train/angle/loss"] == pytest.approx(rows[2]["train/angle/loss"], abs=0.2)  # no step moved anything
    assert Run(folder).summary["epochs"] == 3


@pytest.mark.slow
def test_the_moving_average_is_what_is_kept_and_tested(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", *TINY_LINES, "callbacks=[default,ema]")
    last = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    name = "net.stem.conv.weight"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])
    best = load_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(Run(folder).weights()["stem.conv.weight"], best[name])


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["fast", "profile", "overfit"])
def test_debugging(debug: str, tmp_path: Path) -> None:
    epochs = ["trainer.max_epochs=3"] if debug == "overfit" else []
    folder = run_train(tmp_path / "run", *TINY_LINES[:3], f"debug={debug}", *epochs)
    assert Run(folder).summary["status"] == ("trial" if debug == "fast" else "finished")
    if debug == "profile":
        assert "run_training_batch" in (folder / "fit-profile.txt").read_text()
    if debug == "fast":
        assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_a_trainer_and_a_logger_of_ones_own_get_everything(lines_run: Path, tmp_path: Path) -> None:
    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append((trainer.callback_metrics["train/acc"].item(), trainer.callback_metrics["val/acc"].item()))

    seen: list[tuple[float, float]] = []
    config = Run(lines_run).config
    datamodule = build_datamodule(config)
    classifier = build_classifier(config, datamodule)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(tmp_path), default_root_dir=tmp_path, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(classifier, datamodule=datamodule)
        (results,) = trainer.test(classifier, datamodule=datamodule, verbose=False)
    assert {"test/loss", "test/acc", "test/angle/acc", "test/length/f1", "test/width/recall"} <= set(results)
    with next(tmp_path.rglob("metrics.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "val/acc", "val/angle/loss", "val/angle/f1"} <= set(rows[0])
    logged = [[float(row[name]) for row in rows if row[name]] for name in ("train/acc", "val/acc")]
    assert seen == list(zip(*logged, strict=True))  # a callback sees the values of the epoch that ends


@pytest.mark.slow
def test_one_batch_is_learned_by_heart(tmp_path: Path) -> None:
    folder = run_train(
        tmp_path / "run", "debug=overfit", "callbacks=default", *TINY_LINES[:3], "trainer.max_epochs=60",
        "data.batch_size=96", "net.dropout=0", "optimizer.lr=0.005", "trainer.precision=32-true",
    )  # fmt: skip
    rows = Run(folder).metrics
    assert rows[0]["train/acc"] < 0.2
    assert max(row["train/acc"] for row in rows) == 1.0
    assert rows[-1]["train/loss"] < 0.2


@pytest.mark.slow
def test_a_small_multihead_run_learns_lines(tmp_path: Path) -> None:
    words = ("experiment=multihead", "data.train_per_class=100", "data.val_per_class=10", "data.test_per_class=20")
    summary = Run(run_train(tmp_path / "run", *words, "trainer.max_epochs=4")).summary
    assert summary["test"]["joint_accuracy"] > 0.8
    assert summary["data"]["overlap"] == 0


def test_a_moved_run_keeps_its_best(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    checkpoint, other = (RunCheckpoint(filename="best", monitor="selection_score") for _ in range(2))
    checkpoint.dirpath, other.dirpath = str(before), str(now)
    checkpoint.best_k_models = {str(before / "best.ckpt"): torch.tensor(3.0)}
    checkpoint.kth_best_model_path = checkpoint.best_model_path = str(before / "best.ckpt")
    other.load_state_dict(checkpoint.state_dict())
    assert other.best_k_models == {str(now / "best.ckpt"): torch.tensor(3.0)}
    assert other.kth_best_model_path == other.best_model_path == str(now / "best.ckpt")


def test_a_second_signal_does_not_wait() -> None:
    shutdown = GracefulShutdown()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        shutdown.on_train_start(L.Trainer(logger=False, enable_checkpointing=False), L.LightningModule())
        signal.raise_signal(signal.SIGTERM)
        assert shutdown.received == signal.SIGTERM
        with pytest.raises(Interrupted) as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.value.code == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_the_steps_alone_bound_a_run(tmp_path: Path) -> None:
    words = ("trainer.max_epochs=null", "trainer.max_steps=9", "data.batch_size=96", "lr_scheduler=one_cycle")
    rows = Run(run_train(tmp_path / "run", *TINY_LINES[:3], *words)).metrics
    assert len(rows) == 2  # 6 steps, and 3
    # The rate of an epoch's last step, here of steps 5 and 8. Of a cycle of 9 steps the peak lies at 1.8: step 5 is
    # (5 - 1.8) / (8 - 1.8) of the way down from 0.02.
    down = (1 + math.cos(math.pi * 3.2 / 6.2)) / 2
    assert [row["lr"] for row in rows] == pytest.approx([0.02 * (0.001 + 0.999 * down), 0.02 * 0.001])


@pytest.mark.slow
def test_heatmaps_are_monitored_without_validation_too(tmp_path: Path) -> None:
    words = ("callbacks=[default,grad_cam_monitor]", "callbacks.grad_cam_monitor.images=12", "data.val_per_class=0")
    folder = run_train(tmp_path / "run", *TINY_LINES, *words)
    assert all(0 <= row["train/angle/grad_cam_rank_accuracy"] <= 1 for row in Run(folder).metrics)
    assert (folder / "figures" / "grad_cam.png").exists()


def test_the_line_of_an_epoch() -> None:
    row = {"epoch": 2, "train/loss": 0.5, "train/acc": 0.9, "train/a/acc": 0.95, "seconds": 3.0, "val_seconds": 1.0}
    assert epoch_line(row, 3) == "epoch 2/3  loss train 0.5000  train % a 95.00  4.0 s"
    row |= {"val/loss": 0.25, "val/acc": 0.8, "val/a/acc": 0.85, "val/b/acc": 0.9, "train/b/acc": 1.0}
    line = "epoch 2/3  loss train 0.5000, val 0.2500  val % all 80.00  a 85.00  b 90.00  4.0 s"
    assert epoch_line(row, 3) == line


RELOAD = "trainer.reload_dataloaders_every_n_epochs=1"
FEW = ("data.batch_size=96", "trainer.max_epochs=3")  # six batches an epoch


def test_an_epoch_without_validation_has_no_validation_values(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "cut", *TINY_LINES, *FEW, "trainer.max_steps=8")
    first, second = Run(folder).metrics  # the second ends after two of six batches
    assert "val/acc" in first
    assert not [name for name in second if name.startswith("val/")]
    assert "val" not in (folder / "log.txt").read_text().splitlines()[2]
    folder = run_train(
        tmp_path / "long", *TINY_LINES, *FEW, "trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=10"
    )
    assert [any(name.startswith("val/") for name in row) for row in Run(folder).metrics] == [False, True, False]


@pytest.mark.slow
def test_a_plateau_is_of_validated_epochs_alone(tmp_path: Path) -> None:
    """With patience 1 the rate falls after the second epoch that is no better: of six epochs three are validated."""
    words = ("lr_scheduler=plateau", "lr_scheduler.scheduler.patience=0", "optimizer.lr=1e-12", "trainer.max_epochs=6")
    folder = run_train(tmp_path / "run", *TINY_LINES, *words, "trainer.check_val_every_n_epoch=2")
    rates = [row["lr"] for row in Run(folder).metrics]
    assert rates[2] == rates[0]  # the second epoch was the first to be validated: nothing to compare it with


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.max_steps=2",),
        ("trainer.check_val_every_n_epoch=10",),
        ("callbacks=none",),
        ("callbacks=early_stopping",),
        ("data.val_per_class=0", "callbacks=none"),
    ],
    ids=["max_steps", "check_val", "none", "early_stopping", "no validation"],
)
def test_a_run_without_a_validated_epoch_can_be_opened(words: tuple[str, ...], tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", *TINY_LINES, *FEW, *words, "trainer.max_epochs=2")
    run = Run(folder)
    epochs = 1 if "max_steps" in words[0] else 2
    assert (run.summary["status"], run.summary["epochs"], run.summary["best_epoch"]) == ("finished", epochs, epochs)
    assert run.summary["data"]["train"] == 576 * epochs  # new lines every epoch
    assert len(run.predict(run.examples(2))) == 2
    assert "the last weights are kept and tested" in (folder / "log.txt").read_text()


def test_the_next_job_has_loggers_of_its_own_after_a_failure(tmp_path: Path) -> None:
    """As Weights & Biases, whose `finish` ends a run: a failed one must not stay open."""
    words = ("+logger.mine._target_=tests.training.test_callbacks.OpenLogger", "optimizer.lr=1e30")
    with pytest.raises(SystemExit, match=r"lower optimizer\.lr"):
        run_train(tmp_path / "run", *TINY_LINES, *FEW, *words, "trainer.max_epochs=1")
    assert OpenLogger.finished == 1


class OpenLogger(CSVLogger):
    """A logger whose experiment is to be finished."""

    finished = 0

    def __init__(self) -> None:
        super().__init__("unused")

    @property
    def experiment(self) -> Any:
        return self

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any = None) -> None: ...

    def save(self) -> None: ...

    def finalize(self, status: str) -> None: ...

    def finish(self) -> None:
        type(self).finished += 1


def test_a_plateau_by_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"lr_scheduler.interval=step: ReduceLROnPlateau compares epochs"):
        run_train(tmp_path / "run", *TINY_LINES, *FEW, "lr_scheduler=plateau", "lr_scheduler.interval=step")


def test_a_run_that_goes_on_without_validation_tests_its_last_weights(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", *TINY_LINES, *FEW, "trainer.check_val_every_n_epoch=9", "trainer.max_epochs=1")
    first = load_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    in_process("train", f"resume={folder}", "trainer.max_epochs=2")
    best, last = (load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"] for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)
    assert not all(torch.equal(best[name], first[name]) for name in last)


def test_a_trial_run_is_not_finished_and_says_so(tmp_path: Path) -> None:
    run = Run(run_train(tmp_path / "run", *TINY_LINES, "trainer.fast_dev_run=true"))
    assert run.summary["status"] == "trial"
    assert not run.finished
    with pytest.raises(UserError, match=r"a trial run .* keeps no weights"):
        _ = run.net


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.max_epochs=null", "trainer.max_time=00:00:00:09"), "set trainer.max_epochs or trainer.max_steps"),
        (
            ("+callbacks.mine._target_=tests.training.test_callbacks.SmallerBatches", RELOAD),
            "epoch 2 ends at step 18, planned was 12: the batch size or the accumulation of gradients changed",
        ),
    ],
)
def test_one_cycle_needs_a_number_of_steps(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        run_train(tmp_path / "run", *TINY_LINES, *FEW, *words)


class SmallerBatches(L.Callback):
    """Halves the batch size after the first epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.datamodule.batch_size = 48  # type: ignore[attr-defined]


def test_one_cycle_follows_an_accumulation_that_changes(tmp_path: Path) -> None:
    """Three epochs of 6 batches: 6 steps, then 3 and 3. The last of 12 steps is at the end of the schedule."""
    schedule = "{_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {1: 2}}"
    folder = run_train(tmp_path / "run", *TINY_LINES, *FEW, f"+callbacks.accumulate={schedule}", "optimizer.lr=0.01")
    assert Run(folder).metrics[-1]["lr"] == pytest.approx(0.01 * 0.001, rel=1e-6)


def test_the_progress_bar_counts_epochs_as_the_log_does() -> None:
    bar = ProgressBar()
    for epochs, words in ((5, "Epoch 1/5"), (-1, "Epoch 1"), (None, "Epoch 1")):
        bar.setup(L.Trainer(max_epochs=epochs, max_time="00:00:00:01", logger=False), L.LightningModule(), "fit")
        assert bar._get_train_description(0).strip() == words


@pytest.mark.parametrize("settings", [{"dirpath": "elsewhere"}, {"filename": "mine"}, {"save_top_k": 3}])
def test_a_setting_that_would_lose_the_best_checkpoint_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="it keeps one file, `best` or `last`, in the run folder"):
        RunCheckpoint(**{"filename": "best", "monitor": "val/acc", **settings})
