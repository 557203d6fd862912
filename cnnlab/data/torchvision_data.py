"""Any classification data set of torchvision, in memory, with stratified splits."""

from __future__ import annotations

import inspect
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import VisionDataset
from torchvision.transforms import PILToTensor

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.image_io import INPUT_TYPES
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError

READ_ERRORS = (OSError, RuntimeError, EOFError, ValueError, zlib.error)  # what a broken or missing file raises
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

    Args:
        train, test: Make a data set each, like `partial(torchvision.datasets.MNIST, root, train=True)`. `download` is
            passed in `prepare_data` if they take it; `transform` is `PILToTensor` unless it is given.
        root: The folder of downloaded files.
        head: The name of the head. Its classes are the data set's `classes`, or its numbers.
        input_type: How images from outside are converted (see `data.image_io`).
        train_size, val_size, test_size: Images for training (None: the rest), validation (0: none) and test (None:
            all). Every part is random and holds each class in its share of the whole.
        split_seed: Chooses the images, so that runs with different `seed` share one split.

    Raises:
        UserError: For unreadable data, labels that are not 0, 1, 2, ..., a split without some class, or sizes that do
            not fit.
    """

    def __init__(
        self,
        train: partial[VisionDataset],
        test: partial[VisionDataset],
        root: str = "~/.cache/cnnlab",
        head: str = "class",
        input_type: str = "image",
        train_size: int | None = None,
        val_size: int = 5_000,
        test_size: int | None = None,
        split_seed: int = 0,
        seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        self.make, self._prepared = {"fit": train, "test": test}, False
        self.root, self.head, self.input_type = Path(root).expanduser(), head, input_type
        if input_type not in INPUT_TYPES:
            raise UserError(f"data.input_type={input_type}: choose one of {', '.join(INPUT_TYPES)}")
        self.sizes, self.split_seed = {"train": train_size, "val": val_size, "test": test_size}, split_seed
        for name, size in self.sizes.items():
            if size is not None and size < (0 if name == "val" else 1):
                raise UserError(f"data.{name}_size={size} is too small")

    def prepare_data(self) -> None:
        """Download missing files; one process after another, so that one downloads."""
        for make in self.make.values():
            if self._prepared or "download" not in inspect.signature(make.func).parameters:
                continue
            with suppress(*READ_ERRORS):  # complete files may lie where nothing can be written
                make(download=False)
                continue
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with FileLock(self.root / ".lock"), _patience():
                    make(download=True)
            except UserError:
                raise
            except READ_ERRORS as error:
                raise UserError(_how_to_get(make.func, self.root, error)) from error
        self._prepared = True  # Lightning asks again for each stage

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
            order = stratified_order(classes, self.split_seed)
            self._add_split("val", pixels, classes, order[:val_size])
            self._add_split("train", pixels, classes, order[val_size : val_size + train_size])
        if stage in ("test", "predict", None) and "test" not in self.splits:
            pixels, classes = self._load("test")
            size = len(pixels) if self.sizes["test"] is None else self.sizes["test"]
            if size > len(pixels):
                raise UserError(f"data.test_size={size}: there are {len(pixels):,} test images")
            self._add_split("test", pixels, classes, stratified_order(classes, self.split_seed)[:size].sort().values)

    def _add_split(self, name: str, pixels: Tensor, classes: Tensor, rows: Tensor) -> None:
        """Keep the images `rows` int64 (N,) as a split. Raises `UserError` for a split without some class."""
        names = self.heads[0].classes
        for number, count in enumerate(classes.bincount(minlength=len(names)).tolist()):
            if len(rows) and not (classes[rows] == number).any():
                remedy = f"raise data.{name}_size, or give each class more images" if count else "the data has none"
                raise UserError(
                    f"data: the {name} split of {len(rows):,} images has none of class '{names[number]}'; {remedy}"
                )
        self.splits[name] = InMemoryDataset(pixels[rows], classes[rows], self.head)

    def _open(self, stage: str) -> VisionDataset:
        make = self.make[stage]
        return make() if "transform" in make.keywords else make(transform=PILToTensor())

    def _load(self, stage: str) -> tuple[Tensor, Tensor]:
        """Return all images uint8 (N, C, H, W) and classes int64 (N,), and set `heads` and `image_shape`."""
        kind = self.make[stage].func.__name__
        try:
            dataset = self._open(stage)
            names = class_names(dataset)
            if stage == "fit":
                others = class_names(self._open("test"))
                if names and others and names != others:
                    differing = ", ".join(sorted({*names} ^ {*others})) or "the same in another order"
                    raise UserError(f"data: training and test set do not have the same classes: {differing}")
            if not len(dataset):
                raise UserError(f"data: {kind} holds no images")
            images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
            pixels = torch.stack(images)
        except UserError:
            raise
        except READ_ERRORS as error:
            raise UserError(f"data: {kind} cannot be read ({' '.join(str(error).split())})") from error
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise UserError(f"data: {kind} gives {pixels.dtype} {tuple(pixels.shape[1:])}, not uint8 (C, H, W)")
        if names is not None and len(set(names)) < len(names):
            raise UserError(f"data: {kind} gives two classes one name")
        shape = tuple(pixels.shape[1:])
        if "train" in self.splits and stage == "test" and shape != self.image_shape:
            raise UserError(f"data: test images are {shape}, training images {self.image_shape}; give them one size")
        if "train" in self.splits and stage == "test":
            names = self.heads[0].classes
        classes, names = _numbered(labels, names, kind)
        self.heads = (Head(self.head, names),)
        self.image_shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        return pixels, classes


def stratified_order(classes: Tensor, seed: int) -> Tensor:
    """Return a random order int64 (N,) of images with `classes` int64 (N,). Among the first n each class has about its
    share, and at least one image if n is at least the number of classes."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(classes), dtype=torch.float64)
    for number in classes.unique():
        members = (classes[order] == number).nonzero()[:, 0]
        place[members] = torch.arange(len(members), dtype=torch.float64) / len(members)
    return order[place.argsort(stable=True)]


def class_names(dataset: VisionDataset) -> tuple[str, ...] | None:
    """Return the names of a data set's classes, or None."""
    names = getattr(dataset, "classes", None)
    return tuple(str(name) for name in names) if names else None


def _numbered(labels: Sequence[Any], names: tuple[str, ...] | None, kind: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as int64 (N,), and the names of all classes. Raises `UserError` for labels that are not 0, 1, 2,
    ..., and for fewer than two classes."""
    try:
        classes = torch.tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        classes = torch.empty(0, 2)
    remedy = "number the classes 0, 1, 2, ... (with the target_transform of data.train and data.test)"
    if classes.ndim != 1 or classes.is_floating_point() or classes.is_complex():
        raise UserError(
            f"data: {kind} has labels like {labels[0]!r:.40}, not one whole number for each image; {remedy}"
        )
    classes = classes.long()
    low, high = int(classes.min()), int(classes.max())
    expected = len(names) if names else high + 1
    if low < 0 or high >= expected or (names is None and len(classes.unique()) < expected):
        known = f" for {len(names)} classes" if names else ""
        raise UserError(f"data: {kind} has labels from {low} to {high}{known}, some are missing or too high; {remedy}")
    if expected < 2:
        raise UserError(f"data: {kind} has one class only; a network needs at least two to tell apart")
    return classes, names or tuple(map(str, range(expected)))


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on a silent server: torchvision itself waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _how_to_get(kind: Any, root: Path, error: Exception) -> str:
    """Return the error, and which files to put into which folder by hand."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and not root.is_dir():
        return f"cannot keep {kind.__name__} in {root} ({reason}); set data.root=<folder>"
    if hasattr(kind, "resources"):  # MNIST and its relatives
        folder, files = root / kind.__name__ / "raw", [name for name, _ in kind.resources]
    else:
        folder, files = root, [getattr(kind, "filename", "its files")]
    return f"{kind.__name__} could not be fetched or read ({reason}); put {', '.join(files)} into {folder}"
