"""Any classification set of torchvision: fetched once, held in memory, split with validation from its end."""

from __future__ import annotations

import inspect
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import VisionDataset
from torchvision.transforms import PILToTensor

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.outside import EXPECTS
from cnnlab.errors import UserError
from cnnlab.models.heads import Head

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, zlib.error)  # what a broken or missing file raises
PATIENCE = 20  # seconds for a server that says nothing


class InMemoryDataset(BatchedDataset):
    """Images uint8 (N, C, H, W) and classes int64 (N,) of one head."""

    def __init__(self, pixels: Tensor, classes: Tensor, head: str) -> None:
        self.pixels, self.classes, self.head = pixels, classes, head

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        return {self.head: self.classes[indices]}


class TorchvisionDataModule(ImageDataModule):
    """A training and a test set of torchvision, with one head.

    `train` and `test` make a data set each, as `partial(torchvision.datasets.MNIST, root, train=True)` does; a
    `download` that it takes is asked for in `prepare_data`, and a `transform` that it is not given is `PILToTensor`.
    `root` is where they keep what they fetch. The last `val_size` of the training images are for validation (0:
    none); of the others the first `train_size` are trained on, and of the test images the first `test_size` met, all
    where it is None. `head` names the head; its classes are the data set's `classes`, or else its numbers.
    `expects` says how images from outside are treated (see `data.outside`). Raises
    `UserError` in one line for what cannot be fetched or read, and for sizes that do not fit.
    """

    def __init__(
        self,
        train: partial[VisionDataset],
        test: partial[VisionDataset],
        root: str = "~/.cache/cnnlab",
        head: str = "class",
        expects: str = "image",
        train_size: int | None = None,
        val_size: int = 5_000,
        test_size: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        self.make = {"fit": train, "test": test}
        self.root, self.head, self.expects = Path(root).expanduser(), head, expects
        if expects not in EXPECTS:
            raise UserError(f"data.expects={expects}: choose one of {', '.join(EXPECTS)}")
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        for name, size in self.sizes.items():
            if size is not None and size < (0 if name == "val" else 1):
                raise UserError(f"data.{name}_size={size} is too small")

    def prepare_data(self) -> None:
        """Fetch what is missing; of several processes one after another, so that one alone downloads."""
        for make in self.make.values():
            if "download" not in inspect.signature(make.func).parameters:
                continue
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with FileLock(self.root / ".lock"), _patience():
                    make(download=True)
            except UserError:
                raise
            except UNREADABLE as error:
                raise UserError(_how_to_get(make.func, self.root, error)) from error

    def setup(self, stage: str | None = None) -> None:
        if stage in ("fit", "validate", None) and "train" not in self.splits:
            pixels, classes = self._load("fit")
            val_size = self.sizes["val"] or 0
            left = len(pixels) - val_size
            train_size = left if self.sizes["train"] is None else self.sizes["train"]
            if not 1 <= train_size <= left:
                raise UserError(
                    f"data.train_size={train_size} and data.val_size={val_size} do not fit: there are "
                    f"{len(pixels):,} training images"
                )
            self.splits["train"] = InMemoryDataset(pixels[:train_size], classes[:train_size], self.head)
            self.splits["val"] = InMemoryDataset(pixels[left:], classes[left:], self.head)
        if stage in ("test", "predict", None) and "test" not in self.splits:
            pixels, classes = self._load("test")
            size = len(pixels) if self.sizes["test"] is None else self.sizes["test"]
            if size > len(pixels):
                raise UserError(f"data.test_size={size}: there are {len(pixels):,} test images")
            self.splits["test"] = InMemoryDataset(pixels[:size], classes[:size], self.head)

    def _load(self, stage: str) -> tuple[Tensor, Tensor]:
        """All images uint8 (N, C, H, W) and classes int64 (N,), and with them `heads` and `image_shape`."""
        make = self.make[stage]
        try:
            dataset = make() if "transform" in make.keywords else make(transform=PILToTensor())
            images, classes = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
            pixels = torch.stack(images)
        except UserError:
            raise
        except UNREADABLE as error:
            raise UserError(f"data: {make.func.__name__} cannot be read ({' '.join(str(error).split())})") from error
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise UserError(
                f"data: {make.func.__name__} gives {pixels.dtype} {tuple(pixels.shape[1:])}, not uint8 (C, H, W)"
            )
        targets = torch.tensor(classes)
        names = getattr(dataset, "classes", None) or range(int(targets.max()) + 1)
        self.heads = (Head(self.head, tuple(str(name) for name in names)),)
        self.image_shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        return pixels, targets


@contextmanager
def _patience() -> Iterator[None]:
    """Within, a silent server is given up: torchvision itself waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _how_to_get(kind: Any, root: Path, error: Exception) -> str:
    """What failed, and which files to put into which folder by hand."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and not root.is_dir():
        return f"cannot keep {kind.__name__} in {root} ({reason}); set data.root=<folder>"
    if hasattr(kind, "resources"):  # MNIST and its relatives
        folder, files = root / kind.__name__ / "raw", [name for name, _ in kind.resources]
    else:
        folder, files = root, [getattr(kind, "filename", "its files")]
    return f"{kind.__name__} could not be fetched or read ({reason}); put {', '.join(files)} into {folder}"
