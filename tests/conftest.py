"""Shared by all tests: the command in this process, real MNIST, and a small run to look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnlab.cli import command
from cnnlab.train import train

TINY_LINES = (
    "data.train_per_class=6",
    "data.val_per_class=2",
    "data.test_per_class=3",
    "trainer.max_epochs=2",
)
TINY_MNIST = ("data.train_size=256", "data.val_size=128", "data.test_size=256", "trainer.max_epochs=2")

Train = Callable[..., Path]


def run_train(folder: Path, *words: str) -> Path:
    """`python -m cnnlab.train <words>` in this process, with `folder` as the run folder."""
    before = sys.argv, os.getcwd()
    sys.argv = ["cnnlab.train", *words, f"hydra.run.dir={folder}"]
    try:
        command("train", train)
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
    return folder


@pytest.fixture(scope="session")
def lines_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the multi-head experiment on few images."""
    return run_train(tmp_path_factory.mktemp("lines") / "run", "experiment=multihead", *TINY_LINES)


@pytest.fixture(scope="session")
def mnist_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the MNIST experiment on few images."""
    return run_train(tmp_path_factory.mktemp("mnist") / "run", "experiment=mnist", *TINY_MNIST)
