"""The console script `cnnlab`: the same as python -m, with completion by tab in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab
from cnnlab.__main__ import COMMANDS
from tests.conftest import TINY_LINES

SCRIPT = str(Path(sys.executable).parent / "cnnlab")


def cnnlab_says(*words: str, status: int = 0) -> str:
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return (done.stdout + done.stderr).strip()


def test_it_lists_its_commands() -> None:
    assert cnnlab_says() == cnnlab_says("--help")
    assert [line.split()[0] for line in cnnlab_says().splitlines()[1:-1]] == list(COMMANDS)
    assert cnnlab_says("--version") == cnnlab.__version__
    assert cnnlab_says("trian", status=1) == "error: there is no command 'trian'; did you mean 'train'?"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_a_typo(name: str) -> None:
    assert cnnlab_says(name, "rin=1", status=1).startswith("error: there is no setting 'rin'")


@pytest.mark.slow
@pytest.mark.parametrize("several", [(), ("trainer=ddp", "trainer.devices=2")])
def test_it_trains(several: tuple[str, ...], tmp_path: Path) -> None:
    said = cnnlab_says("train", "experiment=multihead", *TINY_LINES, *several, f"hydra.run.dir={tmp_path}/run")
    assert f"page             {tmp_path}/run/report.html" in said
    assert said.count("all heads right") == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is that of bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cnnlab exp", "explain export"),
        ("cnnlab train experiment=mnist_d", "experiment=mnist_deep experiment=mnist_dropout"),
        ("cnnlab train experiment=multihead net.fil", "net.filters="),
        ("cnnlab audit ima", "image_size= images="),
    ],
)
def test_completion_by_tab(line: str, offered: str) -> None:
    word = line.count(" ")
    setup = f'export PATH="{Path(SCRIPT).parent}:$PATH"; eval "$(cnnlab -sc install=bash)"; '
    ask = f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={word}; hydra_bash_completion; "
    command = ["bash", "-c", setup + ask + "echo ${COMPREPLY[@]}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == offered
