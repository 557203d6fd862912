"""Mistakes on the command line: one clear line each, exit status 1, and nothing that looks like a run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab
from cnnlab.utils.cli import compose_config, with_experiment_of_data
from tests.conftest import TINY_LINES, run_train


def _command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cnnlab.train", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=multihed"], "there is no experiment 'multihed'; did you mean 'multihead'?"),
        (["nett=branched"], "there is no setting 'nett'; did you mean 'net'?"),
        (["net.fliters=3"], "there is no setting 'net.fliters'; did you mean 'net.filters'?"),
        (["+typo=1"], "there is no setting 'typo'"),
        (["+net.kernel=1"], "there is no setting 'net.kernel'"),
        (["trainer.gradient_clip=1"], "there is no setting 'trainer.gradient_clip'; did you mean"),
        (
            ["callbacks=[default,early_stoping]"],
            "there is no callbacks 'early_stoping'; did you mean 'early_stopping'?",
        ),
        (["logger=tensorbord"], "there is no logger 'tensorbord'; did you mean 'tensorboard'?"),
        (["data.batch_size=many"], "data.batch_size=many is not a whole number"),
        (["data.resample_each_epoch=3"], "data.resample_each_epoch=3 is not true or false"),
        (["optimizer.lr=fast"], "optimizer.lr=fast is not a number"),
        (["seed=1.5"], "seed=1.5 is not a whole number"),
        (["experiment=mnist", "data.train_per_class=3"], "there is no setting 'data.train_per_class'"),
        (["net.filters=[1"], "net.filters=[1"),
        (["trainer.max_steps=some"], "trainer.max_steps=some is not a whole number"),
        (["trainer.max_steps=null"], "trainer.max_steps=None is not a whole number"),
        # Found by the fuzzer, tests/fuzz.py:
        (["data=0"], "Config group override must be a string or a list"),
        (["net={filtres: 1}"], "there is no setting 'net.filtres'; did you mean 'net.filters'?"),
        (["weighting.weights=0"], "weighting.weights=0 is not names with values, like {angle: 5}"),
        (["bn_momentum={}"], "bn_momentum={} is not a number"),
    ],
)
def test_a_typo_is_one_line_with_the_right_spelling(tmp_path: Path, words: list[str], message: str) -> None:
    done = _command(tmp_path, *words)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.batch_size=0"], "data.batch_size=0 must be at least 1"),
        (["data.train_per_class=-5"], "data.train_per_class=-5"),
        (["experiment=lines", "net.kernel_size=40"], "net: its layers do not fit an input of 3 x 28 x 28"),
        (["weighting.weights.colr=2"], "there is no head 'colr'; did you mean 'colour'?"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 is not a whole number from 1 up"),
        (["trainer.precision=half"], "trainer: "),
        (["trainer.accelerator=abacus"], "trainer: "),
        (["optimizer.lr=-1"], "optimizer or lr_scheduler: Invalid learning rate: -1"),
        (["+optimizer.momentm=0.9"], "optimizer or lr_scheduler: "),
        (["+callbacks.mine._target_=no.such.thing"], "callbacks.mine: "),
        (["data.train_per_class=" + "9" * 30], "data.train_per_class=999"),
        (["trainer.gradient_clip_val=much"], "trainer: "),
        (["trainer.accelerator=tpu"], "trainer: "),
        (["+trainer.default_root_dir=elsewhere"], "trainer.default_root_dir is the run's own"),
        (["net.dropout=2"], "net: dropout probability has to be between 0 and 1, but got 2"),
        (["threads=100000"], "threads=100000 is not a whole number in 1..1024"),
        (["threads=1.5"], "threads=1.5 is not a whole number in 1..1024"),
        (["threads=auto"], "threads=auto is not a whole number in 1..1024"),
        (["threads=true"], "threads=True is not a whole number in 1..1024"),
        (["threads=[2]"], "threads=[2] is not a whole number in 1..1024"),
        (["threads=" + "9" * 30], "is not a whole number in 1..1024"),
        (["trainer.max_epochs=adamw"], "trainer.max_epochs=adamw is not a whole number"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null has no end"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 would wait for the other machines"),
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches=0: a run trains and is tested"),
        (["trainer.limit_train_batches=0.0"], "trainer.limit_train_batches=0: a run trains and is tested"),
        (["trainer.precision=transformer-engine"], "trainer: "),
        (["data.batch_size=" + "9" * 30], "data"),
        (["seed=-1"], "seed=-1"),
        (["experiment=mnist", "data.train_size=some"], "data: "),
        (["net=deep", "net.dropout=[a,b,c,d]"], "net: "),
        (["lr_scheduler=inverse_time", "lr_scheduler.scheduler.decay=nan"], "decay=nan"),
        (["l2=-1"], "l2=-1"),
        (["l2=1" + "0" * 400], "l2"),
        (["lr_scheduler.scheduler.warmup=2"], "warmup=2"),
        (["resume=nowhere"], "nowhere is not a run folder"),
    ],
)
def test_a_bad_value_is_one_line_and_leaves_no_folder(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        run_train(folder, *words)
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not folder.exists()


@pytest.mark.slow
def test_what_lightning_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: trainer: Cannot use `LearningRateMonitor` .* no logger") as stop:
        run_train(tmp_path / "run", *TINY_LINES, "callbacks=[default,lr_monitor]")
    assert "\n" not in str(stop.value)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["data.batch_size=many"], ["trainer.max_epochs=0"]])
def test_a_refused_run_leaves_no_folder_in_outputs(tmp_path: Path, words: list[str]) -> None:
    assert _command(tmp_path, *words).returncode == 1
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["outputs"])


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit, match=r"is not empty; choose another folder"):
        run_train(tmp_path, *TINY_LINES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    done = _command(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot write to ")


def test_a_file_that_cannot_be_read_is_no_failure_to_write(tmp_path: Path) -> None:
    """A callback of the user's own lacks its file; a checkpoint is a folder."""
    (tmp_path / "own.py").write_text("def make():\n    open('labels.txt')\n")
    done = _command(tmp_path, *TINY_LINES, "+callbacks.mine._target_=own.make")
    assert done.stderr.startswith("error: ")
    assert "cannot read labels.txt (No such file or directory)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_experiment_of_the_users_own_is_held_to_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nnet:\n  filtres: 3\n")
    done = _command(tmp_path, "--config-dir", str(tmp_path), "experiment=mine")
    assert done.stderr == "error: there is no setting 'net.filtres'; did you mean 'net.filters'?\n"
    assert done.returncode == 1


def test_help_names_groups_and_settings(tmp_path: Path) -> None:
    done = _command(tmp_path, "--help")
    assert done.returncode == 0
    for word in ("  experiment: add_colour, ", "multihead", "  net: blocks, branched", "seed: 0 ", "--cfg job"):
        assert word in done.stdout
    assert "# of the data, the first weights, the order of the images, and dropout" in done.stdout
    assert os.listdir(tmp_path) == []
    shown = subprocess.run(
        [sys.executable, "-m", "cnnlab.explain", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "  method: deconvolution, deep_lift, " in shown
    assert "experiment: " not in shown  # it has no such group
    assert "# of: predicted, true, the name of a class" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs=3"], "error: there is no flag --epochs: settings are written without dashes, epochs=<value>"),
        (["--experiment", "mnist"], "error: there is no flag --experiment: settings are written without dashes"),
    ],
)
def test_a_flag_that_there_is_not_is_answered_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = _command(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_version_is_cnnlabs(tmp_path: Path) -> None:
    assert _command(tmp_path, "--version").stdout == f"cnnlab {cnnlab.__version__}\n"


def test_a_group_that_a_command_does_not_have_is_answered(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cnnlab.explain", "data=mnist"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: there is no setting 'data' (there are run, weights, image_size, images,")
    assert done.stderr.count("\n") == 1


def test_help_into_a_pipe_that_closes_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cnnlab.train -h | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "Train and test a network, and write a run folder.\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [("a: [1\nb: 2: 3\n", "in line 2, column 2"), ("a: 1\n\tb: 2\n", "in line 2"), ("a: 'x\n", "in line")],
)
def test_a_yaml_file_that_cannot_be_read_is_named_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(text)
    done = _command(tmp_path, "--config-dir", str(tmp_path / "conf"), "data=mine")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"error: {tmp_path}/conf/data/mine.yaml is no valid YAML: ")
    assert problem in line


@pytest.mark.parametrize("word", ["max_steps=0", "accumulate_grad_batches=0", "accumulate_grad_batches=-1"])
def test_a_run_of_no_steps_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"trainer.{word} is not a whole number from 1 up"):
        run_train(tmp_path / "run", *TINY_LINES, f"trainer.{word}")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_would_fork_are_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"trainer.strategy={strategy} cannot start a whole training; use trainer=ddp"):
        run_train(tmp_path / "run", *TINY_LINES, f"trainer.strategy={strategy}", "trainer.devices=2")


@pytest.mark.parametrize("name", ["stem", "image", "joint", "a.b", "a/b", "type", "", "3d"])
def test_a_name_that_no_head_can_have_is_one_line(name: str, digits: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"data: a head cannot be called '{name}'"):
        run_train(tmp_path / "run", "experiment=mnist", *digits, f"data.head='{name}'")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_logger_without_its_package_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = importlib.import_module(f"lightning.pytorch.loggers.{name}")
    for package in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE", "_MLFLOW_AVAILABLE", "_WANDB_AVAILABLE"):
        for module in (loggers, importlib.import_module("lightning.fabric.loggers.tensorboard")):
            if hasattr(module, package):
                monkeypatch.setattr(module, package, False)
    with pytest.raises(SystemExit, match=rf"logger={name} needs more packages: pip install 'cnnlab\[{name}\]'"):
        run_train(tmp_path / "run", *TINY_LINES, f"logger={name}")


WITHOUT = """
import runpy, sys
sys.modules[sys.argv[1]] = None  # as if it were not installed
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def test_play_names_the_extra_that_brings_its_server(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT, "starlette", "cnnlab.play"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: starlette is not installed: pip install 'cnnlab[play]'\n")


@pytest.mark.parametrize(("own", "expected"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own: str | None, expected: str) -> None:
    code = "import cnnlab.train, os, sys; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    settings |= {} if own is None else {"OMP_WAIT_POLICY": own}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    "name", ["blüte", "Bilder (2)", "foto[1]", "Foto #1", "a&b", "Anna's", "~jörg", "C:\\jörg", "x=1 {y}", "a: b"]
)
def test_a_name_that_hydra_cannot_read_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    words = ["experiment=folder", f"data.root={tmp_path}/{name}"]
    with compose_config("train", words, tmp_path / "run") as cfg:
        assert cfg.data.root == f"{tmp_path}/{name}"


def test_a_comma_in_the_name_of_a_folder_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    with compose_config("train", ["experiment=folder", f"data.root={tmp_path}/a,b"], tmp_path / "run") as cfg:
        assert cfg.data.root == f"{tmp_path}/a,b"


def test_a_sweep_of_another_data_set_has_its_words_side_by_side() -> None:
    words = ["-m", "data=folder", "seed=0,1"]
    assert with_experiment_of_data(words) == ["-m", "experiment=folder", "data=folder", "seed=0,1"]


def test_a_folder_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("init_from", "resume"):
        with pytest.raises(SystemExit, match=f"{tmp_path}/nothing is not a run folder"):
            run_train(tmp_path / "run", f"{setting}=~/nothing")
