"""Shared by all tests: the command in this process, real MNIST, and a small run to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from cnnlab.cli import command
from cnnlab.data.lines import line_heads
from cnnlab.train import train

HEADS = line_heads()  # of red and blue lines
TINY_LINES = (
    "data.train_per_class=6",
    "data.val_per_class=2",
    "data.test_per_class=3",
    "trainer.max_epochs=2",
)
TINY_MNIST = ("data.train_size=256", "data.val_size=128", "data.test_size=256", "trainer.max_epochs=2")


def in_process(name: str, task: Callable[[DictConfig], Any], *words: str) -> None:
    """`python -m cnnlab.<name> <words>` in this process."""
    before = sys.argv
    sys.argv = [f"cnnlab.{name}", *words]
    try:
        command(name, task)
    finally:
        sys.argv = before


def run_train(folder: Path, *words: str) -> Path:
    """`python -m cnnlab.train <words>` in this process, with `folder` as the run folder."""
    in_process("train", train, *words, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="session")
def lines_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the multi-head experiment on few images."""
    return run_train(tmp_path_factory.mktemp("lines") / "run", "experiment=multihead", *TINY_LINES)


@pytest.fixture(scope="session")
def mnist_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the MNIST experiment on few images."""
    return run_train(tmp_path_factory.mktemp("mnist") / "run", "experiment=mnist", *TINY_MNIST)
