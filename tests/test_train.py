"""The train command end to end: the run folder, bit-for-bit repetition, resuming, every experiment."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image

from cnnlab.api import Run, newest
from cnnlab.data.datamodule import Batch
from cnnlab.launch import plan_run
from cnnlab.pipeline import train
from cnnlab.reporting.comparison import find
from cnnlab.training.classifier import Classifier
from cnnlab.utils.checkpoints import load_checkpoint
from cnnlab.utils.cli import CONF, compose_config
from tests.conftest import TINY_LINES, in_process, run_train

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
MNIST_SWEEPS = ("sweep_filters", "sweep_pooling", "sweep_depth", "sweep_decay", "sweep_regularisation")


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def _weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return weights


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_run_folder_holds_what_it_promises(lines_run: Path) -> None:
    heads = ("length", "width", "angle", "colour")
    names = {str(path.relative_to(lines_run)) for path in lines_run.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("explain/")}  # of other tests
    figures = {"architecture", "samples", "curves", "f_scores", "mistakes", *(f"confusion_{head}" for head in heads)}
    assert names == {
        "config.yaml", "summary.json", "metrics.csv", "model.txt", "log.txt", "classes.csv", "report.html",
        "checkpoints/best.ckpt", "checkpoints/ood.ckpt", "checkpoints/last.ckpt",
        *(f"confusion_{head}.csv" for head in heads),
        *(f"figures/{name}.png" for name in figures),
    }  # fmt: skip


def test_the_summary_says_what_happened(lines_run: Path) -> None:
    summary = json.loads((lines_run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["experiment"], summary["seed"], summary["epochs"]) == ("multihead", 0, 2)
    assert summary["parameters"] == {"total": 98_927, "trainable": 98_415, "non_trainable": 512}
    assert {key: summary["data"][key] for key in ("train", "val", "test", "overlap")} == {
        "train": 2 * 576, "val": 192, "test": 288, "overlap": 0,  # new lines in the second epoch
    }  # fmt: skip
    assert set(summary["test"]["heads"]) == {"length", "width", "angle", "colour"}
    assert set(summary["test"]["heads"]["angle"]) == {
        "accuracy", "f1", "precision", "recall", "worst_class", "worst_recall", "absent_classes",
    }  # fmt: skip
    assert 0 <= summary["test"]["joint_accuracy"] <= summary["test"]["heads"]["angle"]["accuracy"] <= 1
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["train_seconds"] > 0
    assert summary["images_per_second"] > 0
    assert summary["best_epoch"] in (1, 2)


def test_tables_agree_with_each_other(lines_run: Path) -> None:
    summary = json.loads((lines_run / "summary.json").read_text())
    with (lines_run / "confusion_angle.csv").open() as file:
        counts = [[int(row[name]) for name in list(row)[1:]] for row in csv.DictReader(file)]
    assert [sum(row) for row in counts] == [24] * 12
    right = sum(counts[i][i] for i in range(12))
    assert summary["test"]["heads"]["angle"]["accuracy"] == pytest.approx(right / 288)
    with (lines_run / "classes.csv").open() as file:
        angle = [row for row in csv.DictReader(file) if row["head"] == "angle"]
    assert [float(row["recall"]) for row in angle] == pytest.approx([counts[i][i] / 24 for i in range(12)])
    rows = _rows(lines_run)
    best = rows[summary["best_epoch"] - 1]
    assert summary["accuracy"]["train"]["joint"] == float(best["train/acc"])
    assert summary["accuracy"]["val"]["angle"] == float(best["val/angle/acc"])
    assert [row["epoch"] for row in rows] == ["1", "2"]
    parts = sum(float(rows[0][f"train/{head}/loss"]) for head in ("length", "width", "angle", "colour"))
    assert float(rows[0]["train/loss"]) == pytest.approx(parts, rel=1e-5)


def test_the_page_carries_everything_and_asks_for_nothing(lines_run: Path) -> None:
    page = (lines_run / "report.html").read_text()
    assert page.count("<figure>") == 9
    assert not re.search(r"""(src|href)=["']?(?!["']?data:)""", page)
    assert "http://" not in page
    assert 'name="viewport"' in page


def test_a_run_can_be_rebuilt_from_its_folder(lines_run: Path) -> None:
    run = Run(lines_run)
    data = run.datamodule()
    net = run.net
    images, targets = data.splits["test"].batch(torch.arange(288))
    with torch.no_grad():
        logits = net(images)
    summary = json.loads((lines_run / "summary.json").read_text())
    for head in data.heads:
        accuracy = (head.predict(logits[head.name]) == targets[head.name]).float().mean().item()
        # The test ran in mixed precision: an image on the edge may fall to the other side.
        assert accuracy == pytest.approx(summary["test"]["heads"][head.name]["accuracy"], abs=0.011)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_bit_for_bit(lines_run: Path, tmp_path: Path) -> None:
    again = run_train(tmp_path / "again", "experiment=multihead", *TINY_LINES, "data.num_workers=2")
    assert _same(_weights(lines_run), _weights(again))
    assert _same(_weights(lines_run, "best"), _weights(again, "best"))
    assert _without_times(_rows(lines_run)) == _without_times(_rows(again))
    other = run_train(tmp_path / "other", "experiment=multihead", *TINY_LINES, "seed=1")
    assert not _same(_weights(lines_run), _weights(other))


@pytest.mark.slow
def test_every_epoch_has_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = Classifier.training_step

    def look(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            seen.append(batch[0].clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", look)
    for fresh in ("false", "true"):
        run_train(tmp_path / fresh, "experiment=multihead", *TINY_LINES, f"data.resample_each_epoch={fresh}")
    shuffled = [{image.numpy().tobytes() for image in images} for images in seen]
    assert shuffled[0] != shuffled[1]  # another order: other images in the first batch
    assert shuffled[0] & shuffled[1]  # of the same data
    assert not shuffled[2] & shuffled[3]  # fresh: never the same image again
    counts = Run(tmp_path / "true").summary["data"]
    assert (counts["train"], counts["overlap"]) == (2 * 576, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "lr_scheduler=one_cycle",
        "lr_scheduler=plateau",
        "lr_scheduler=every_epoch",
        "weighting=uncertainty",
        "weighting=dynamic_weight_average",
    ],
)
def test_a_resumed_run_ends_where_an_undisturbed_one_ends(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=multihead", option, *TINY_LINES, "trainer.max_epochs=4")
    whole = run_train(tmp_path / "whole", *words)

    begin = Classifier.on_validation_epoch_start

    def stop(self: Classifier) -> None:
        if self.trainer.current_epoch == 2:
            raise KeyboardInterrupt
        begin(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_validation_epoch_start", stop)
        with pytest.raises(SystemExit):
            run_train(tmp_path / "cut", *words)
    folder = tmp_path / "cut"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert len(_rows(folder)) == 2
    assert f"python -m cnnlab.train resume={folder}" in capsys.readouterr().out
    assert not (folder / "report.html").exists()

    run_train(tmp_path / "unused", f"resume={folder}")
    assert not (tmp_path / "unused").exists()
    assert _same(_weights(whole), _weights(folder))
    assert _without_times(_rows(whole)) == _without_times(_rows(folder))
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, folder)]
    assert summaries[0]["test"] == summaries[1]["test"]


def test_resume_takes_everything_from_the_run(lines_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (["net.filters=8"], "resume takes everything from the run"),
        (["trainer.max_epochs=1"], "it can only be raised"),
        ([], "is finished; raise trainer.max_epochs"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_train(tmp_path / "unused", f"resume={lines_run}", *words)
        assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("epochs", ["null", "1.5", "some", "1", "[3]", "true"])
def test_epochs_that_are_not_more_are_one_line(epochs: str, lines_run: Path) -> None:
    with pytest.raises(SystemExit, match=r"trainer.max_epochs=.*: the run has 2; it can only be raised"):
        in_process("train", f"resume={lines_run}", f"trainer.max_epochs={epochs}")


@pytest.mark.slow
def test_a_run_that_another_command_cannot_resume_is_left_as_it_is(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, "trainer.max_epochs=1")
    summary = json.loads((folder / "summary.json").read_text()) | {"status": "unfinished"}
    (folder / "summary.json").write_text(json.dumps(summary))  # as if it had been killed, or still went on
    log = (folder / "log.txt").read_text()
    with pytest.raises(SystemExit, match="resume takes everything from the run"):
        run_train(tmp_path / "unused", f"resume={folder}", "seed=7")
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "log.txt").read_text() == log


@pytest.mark.slow
def test_validation_every_other_epoch(tmp_path: Path) -> None:
    words = ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4", "lr_scheduler=plateau")
    folder = run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, *words)
    rows = Run(folder).metrics
    assert ["val/acc" in row for row in rows] == [False, True, False, True]
    assert Run(folder).summary["best_epoch"] in (2, 4)
    last = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 3
    assert len(last["callbacks"]["MetricsHistory"]["rows"]) == 4
    with pytest.raises(SystemExit, match=r"lr_scheduler.monitor=val/los is not logged; did you mean 'val/loss'\?"):
        run_train(tmp_path / "typo", *TINY_LINES, "lr_scheduler=plateau", "lr_scheduler.monitor=val/los")


@pytest.mark.slow
def test_accumulated_batches_are_drawn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    step = Classifier.training_step

    def look(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        drawn.append(torch.rand(1).item())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", look)
    words = ("trainer.accumulate_grad_batches=3", "data.batch_size=96")
    run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, *words)
    assert len(drawn) == len(set(drawn)) == 12


def test_training_is_a_function_of_its_configuration_alone(lines_run: Path, tmp_path: Path) -> None:
    with compose_config("train", ["experiment=multihead", *TINY_LINES], tmp_path / "other") as cfg:
        planned = plan_run(cfg)
        assert isinstance(planned, DictConfig)
    planned.paths.output_dir = str(tmp_path / "run")
    assert not HydraConfig.initialized()
    assert train(planned) == max(row["val/acc"] for row in Run(tmp_path / "run").metrics)
    assert Run(tmp_path / "run").config == Run(lines_run).config
    same = ("train/loss", "val/loss")
    assert [[row[key] for key in same] for row in Run(tmp_path / "run").metrics] == [
        [row[key] for key in same] for row in Run(lines_run).metrics
    ]


def test_the_newest_run_is_neither_trial_nor_research(
    lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lines_run, tmp_path / "outputs" / "mine")
    for place, (file, old, new) in enumerate([
        ("summary.json", '"finished"', '"trial"'), ("config.yaml", "tags: []", "tags: [research]"),
        ("config.yaml", "options:", "options:\n  debug: overfit"),
    ]):  # fmt: skip
        other = shutil.copytree(lines_run, tmp_path / "outputs" / str(place))
        text = (other / file).read_text()
        assert old in text
        (other / file).write_text(text.replace(old, new))
        os.utime(other / "summary.json", (4e9, 4e9))
    assert newest().path == tmp_path / "outputs" / "mine"
    Image.new("RGB", (28, 28), "red").save("red.png")
    in_process("predict", "images=red.png")
    assert capsys.readouterr().out.startswith(f"run  {tmp_path}/outputs/mine\n")


def test_runs_to_debug_are_not_the_newest(lines_run: Path, tmp_path: Path) -> None:
    real = shutil.copytree(lines_run, tmp_path / "outputs" / "real")
    run_train(tmp_path / "outputs" / "debug" / "1", *TINY_LINES[:3], "debug=fast")
    assert newest(tmp_path / "outputs").path == real.resolve()


@pytest.mark.slow
def test_a_finished_run_can_be_trained_longer(tmp_path: Path) -> None:
    folder = run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, "trainer.max_epochs=1")
    run_train(tmp_path / "unused", f"resume={folder}", "trainer.max_epochs=2")
    assert [row["epoch"] for row in _rows(folder)] == ["1", "2"]
    assert Run(folder).summary["epochs"] == 2
    assert Run(folder).summary["test_evaluations"] == 2
    assert "The test set was used\n2 times" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ("add_colour", "search", "folder")])
def test_every_experiment_runs_two_batches(experiment: str, tmp_path: Path, digits: tuple[str, ...]) -> None:
    mnist = "mnist" in experiment or experiment in MNIST_SWEEPS
    words = digits if mnist else ("data.train_per_class=2", "data.val_per_class=1", "data.test_per_class=1")
    batch = 128 if mnist else 96
    folder = run_train(
        tmp_path / "run",
        f"experiment={experiment}",
        *words,
        f"data.batch_size={batch}",
        "trainer.max_epochs=1",
        "hydra.mode=RUN",  # of a sweep one run
    )
    assert Run(folder).summary["experiment"] == experiment


@pytest.mark.slow
def test_a_sweep_carries_its_grid_in_its_file(tmp_path: Path, digits: tuple[str, ...]) -> None:
    words = ("experiment=sweep_pooling", f"hydra.sweep.dir={tmp_path}/sweep", "seed=0")
    run_train(tmp_path / "unused", *words, *digits, "trainer.max_epochs=1")
    configs = [Run(tmp_path / "sweep" / str(job)).config for job in (0, 1)]
    assert [config.net.downsample for config in configs] == ["pool", "stride"]
    assert [config.options.net for config in configs] == ["classifier1"] * 2
    assert not (tmp_path / "sweep" / "2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["uncertainty", "dynamic_weight_average"])
def test_learned_weights_stand_in_the_metrics_and_in_a_picture(weighting: str, tmp_path: Path) -> None:
    words = ("experiment=multihead", f"weighting={weighting}", *TINY_LINES, "trainer.max_epochs=3")
    folder = run_train(tmp_path / "run", *words)
    weights = [float(row["train/angle/weight"]) for row in _rows(folder)]
    assert len(set(weights)) > 1
    assert weights[-1] != 1
    assert (folder / "figures" / "weights.png").exists()
    assert "The weights of the heads' losses, which are learned here." in (folder / "report.html").read_text()


@pytest.mark.slow
def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path, digits: tuple[str, ...]) -> None:
    folder = run_train(tmp_path / "run", "experiment=mnist", *digits, "data.val_size=0", "lr_scheduler=plateau")
    assert Run(folder).summary["best_epoch"] == 2
    assert "val/loss" not in _rows(folder)[0]


@pytest.mark.slow
def test_a_sweep_has_a_folder_a_job(tmp_path: Path) -> None:
    run_train(
        tmp_path / "unused", "-m", f"hydra.sweep.dir={tmp_path}/sweep", "experiment=multihead", *TINY_LINES,
        "trainer.max_epochs=1", "seed=0,1", "weighting.weights.angle=3",
    )  # fmt: skip
    for job in (0, 1):
        run = Run(tmp_path / "sweep" / str(job))
        assert run.summary["seed"] == job
        assert _rows(run.path)[0]["train/angle/weight"] == "3.0"


def test_digits_have_one_head(digits_run: Path) -> None:
    summary = Run(digits_run).summary
    assert summary["data"]["test"] == 256
    assert summary["test"]["joint_accuracy"] == pytest.approx(summary["test"]["heads"]["digit"]["accuracy"])


@pytest.mark.slow
def test_a_run_gives_back_the_cores_it_was_denied(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    folder = run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, "threads=1")
    assert ", 1 thread," in Run(folder).summary["machine"]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_failing_job_is_said_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-m", f"hydra.sweep.dir={tmp_path}/sweep", "experiment=multihead", *TINY_LINES)
    grid = ("trainer.max_epochs=1", "net.filters=8,-1,4")
    with pytest.raises(SystemExit, match=r"net: filters=-1 must be at least 1"):
        run_train(tmp_path / "unused", *words, *grid)
    runs = [tmp_path / "sweep" / str(job) for job in range(3)]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert [summary["status"] for summary in summaries] == ["finished", "failed", "finished"]
    assert summaries[1]["error"] == "net: filters=-1 must be at least 1"
    assert "UserError: net: filters=-1" in (runs[1] / "log.txt").read_text()
    assert "run folder" in (runs[2] / "log.txt").read_text()
    assert [record.status for record in find([tmp_path / "sweep"])] == ["finished", "failed", "finished"]

    shutil.rmtree(runs[2] / "checkpoints")
    (runs[2] / "summary.json").unlink()  # as if it had been killed
    times = [(run / "config.yaml").stat().st_mtime_ns for run in runs]
    with pytest.raises(SystemExit, match=r"net: filters=-1 must be at least 1"):
        run_train(tmp_path / "unused", *words, *grid, "skip_finished=true")
    assert Run(runs[2]).finished
    again = [(run / "config.yaml").stat().st_mtime_ns != time for run, time in zip(runs, times, strict=True)]
    assert again == [False, False, True]  # the failed one failed again, as it began
    with pytest.raises(SystemExit, match="holds another run than this"):
        run_train(tmp_path / "unused", *words, "trainer.max_epochs=2", "net.filters=8", "skip_finished=true")


@pytest.mark.slow
def test_a_run_that_ends_by_its_steps_is_not_tested_again(tmp_path: Path) -> None:
    words = ("experiment=multihead", *TINY_LINES, "data.batch_size=192", "trainer.max_steps=2")
    folder = run_train(tmp_path / "run", *words)
    with pytest.raises(SystemExit, match=r"it ends at trainer\.max_steps=2; train anew"):
        run_train(tmp_path / "unused", f"resume={folder}", "trainer.max_epochs=5")
    assert Run(folder).summary["test_evaluations"] == 1


@pytest.mark.slow
def test_the_accuracy_beside_the_kept_weights_is_theirs(tmp_path: Path) -> None:
    """With a validation within the epoch the kept weights may not be those of its end."""
    words = ("experiment=multihead", *TINY_LINES, "data.batch_size=96", "trainer.val_check_interval=2")
    run = Run(run_train(tmp_path / "run", *words, "trainer.precision=32-true", "callbacks=[default,best_loss]"))
    assert load_checkpoint(run.checkpoint("best"))["global_step"] % 6  # not the end of an epoch
    split = run.datamodule("fit").splits["val"]
    images, targets = split.batch(torch.arange(len(split)))
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    classifier = Classifier.load_from_checkpoint(run.checkpoint("best"), net=run.net)
    with torch.no_grad():
        logits = classifier.predict_step((images, targets), 0)
    for head in run.heads:
        right = (head.predict(logits[head.name]) == targets[head.name]).double().mean().item()
        assert run.summary["accuracy"]["val"][head.name] == pytest.approx(right, abs=1e-6)
    predicted = trainer.predict(classifier, datamodule=run.test_data)
    assert predicted is not None
    assert sum(len(part["angle"]) for part in predicted) == len(run.test_split)
