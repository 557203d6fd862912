"""Shared by all tests: the command in this process, a small torchvision set, and small runs to look at."""

from __future__ import annotations

import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnlab.data.lines import line_heads
from cnnlab.models.heads import Head

HEADS = line_heads()  # of red and blue lines
DIGIT = Head("digit", tuple("0123456789"))
TINY_LINES = ("data.train_per_class=6", "data.val_per_class=2", "data.test_per_class=3", "trainer.max_epochs=2")
TINY_DIGITS = ("data.train_size=256", "data.val_size=128", "data.test_size=256", "trainer.max_epochs=2")


def in_process(name: str, *words: str) -> None:
    """`python -m cnnlab.<name> <words>` in this process, or of another package, `python -m <name> <words>`."""
    before, module = sys.argv, name if "." in name else f"cnnlab.{name}"
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__")
    finally:
        sys.argv = before


def run_train(folder: Path, *words: str) -> Path:
    """`python -m cnnlab.train <words>` in this process, with `folder` as the run folder."""
    in_process("train", *words, f"hydra.run.dir={folder}")
    return folder


def write_idx(folder: Path, train: int, test: int) -> None:
    """The four IDX files of a set like MNIST: a digit is a bright row at its own height, on noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = generator.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels, 4:24] = 250
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings for `experiment=mnist` that train it on a few images, made here, in the place of FashionMNIST."""
    root = tmp_path_factory.mktemp("digits")
    write_idx(root / "FashionMNIST" / "raw", train=400, test=256)
    return ("data=fashion_mnist", "data.head=digit", f"data.root={root}", *TINY_DIGITS)


@pytest.fixture(scope="session")
def lines_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the multi-head experiment on few images."""
    return run_train(tmp_path_factory.mktemp("lines") / "run", "experiment=multihead", *TINY_LINES)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, digits: tuple[str, ...]) -> Path:
    """A finished run of the MNIST experiment on few images."""
    return run_train(tmp_path_factory.mktemp("mnist") / "run", "experiment=mnist", *digits)
