"""Your own pictures, from folders or a table, read when they are needed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.image_io import FORMATS, SUFFIXES, read_image
from cnnlab.data.torchvision_data import stratified_order
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError

Labels = dict[str, list[str]]  # {head: class of each picture}
Pictures = tuple[list[Path], Labels]
ONLY_HEAD = "class"  # of folders


class PictureDataset(BatchedDataset):
    """Picture files and {head: classes int64 (N,)}. Pictures of any size and mode become `image_shape` (C, H, W), as
    those that a trained network is shown later."""

    def __init__(self, files: Sequence[Path], classes: dict[str, Tensor], image_shape: tuple[int, int, int]) -> None:
        self.files, self.classes, self.image_shape = list(files), classes, image_shape

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Tensor) -> Tensor:
        pictures = [read_image(self.files[i], self.image_shape)[0] for i in indices.tolist()]
        return torch.stack(pictures) if pictures else torch.zeros(0, *self.image_shape, dtype=torch.uint8)

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        return {head: values[indices] for head, values in self.classes.items()}


class ImageFolderDataModule(ImageDataModule):
    """Pictures in `root/<class>/`, or in `root/train/<class>/`, `root/test/<class>/` and `root/val/<class>/`.

    Args:
        root: The folder.
        table: A CSV file in `root` instead of folders of classes: a column "file", and a column per head with the class
            of each picture.
        size: The side of the images in pixels. Pictures are padded to a square and scaled.
        channels: 3, or 1 for grey.
        val_share, test_share: The shares in [0, 1) that are held out for validation and test where `root` has no such
            folder. Each share holds all classes, in their proportions.
        split_seed: Chooses them, so that runs with different `seed` share one split.

    Raises:
        UserError: For a missing folder or table, a file that is no picture, or a class without training pictures.
    """

    def __init__(
        self,
        root: str | None,
        table: str | None = None,
        size: int = 64,
        channels: int = 3,
        val_share: float = 0.15,
        test_share: float = 0.15,
        split_seed: int = 0,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        if root is None:
            raise UserError("data.root=<folder> is needed: a folder per class, or train/, val/ and test/ with these")
        if channels not in (1, 3) or not 8 <= size <= 1024:
            raise UserError(f"data.channels={channels} must be 1 or 3, data.size={size} in 8..1024")
        if not (0 <= val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise UserError("data.val_share and data.test_share must be at least 0, and below 1 together")
        self.root, self.table = Path(root).expanduser(), table
        self.image_shape = channels, size, size
        self.shares, self.split_seed = {"test": test_share, "val": val_share}, split_seed

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder")
        given = {name: self.root / name for name in self.names if (self.root / name).is_dir()}
        if self.table is not None:
            parts = {"train": _from_table(self.root, self.root / self.table)}
        elif "train" in given:
            parts = {name: _from_folders(folder) for name, folder in given.items()}
        else:
            parts = {"train": _from_folders(self.root)}
        names = {head: {name for _, labels in parts.values() for name in labels[head]} for head in parts["train"][1]}
        self.heads = tuple(Head(head, tuple(sorted(classes))) for head, classes in names.items())
        files, classes = self._numbered(parts["train"])
        combined = torch.stack(list(classes.values())).unique(dim=1, return_inverse=True)[1]
        rows = stratified_order(combined, self.split_seed)
        for name, share in self.shares.items():
            count = 0 if name in parts else round(share * len(files))
            kept = self._numbered(parts[name]) if name in parts else _chosen(files, classes, rows[:count])
            self.splits[name], rows = PictureDataset(*kept, self.image_shape), rows[count:]
        self.splits["train"] = PictureDataset(*_chosen(files, classes, rows), self.image_shape)
        for head in self.heads:
            counts = classes[head.name][rows].bincount(minlength=len(head.classes))
            if not counts.all() or not len(self.splits["test"]):
                few = head.classes[int(counts.argmin())]
                raise UserError(f"data: too few pictures, of class '{few}' only {int(counts.min())} for training")

    def _numbered(self, pictures: Pictures) -> tuple[list[Path], dict[str, Tensor]]:
        """Return the files, which are checked to be pictures, and {head: classes int64 (N,)}."""
        files, labels = pictures
        for file in files:
            try:
                with Image.open(file, formats=FORMATS):
                    pass
            except (OSError, Image.DecompressionBombError) as error:
                raise UserError(f"{file} is no picture that can be read: {', '.join(FORMATS)}") from error
        return files, {h.name: torch.tensor([h.classes.index(name) for name in labels[h.name]]) for h in self.heads}


def _chosen(files: list[Path], classes: dict[str, Tensor], rows: Tensor) -> tuple[list[Path], dict[str, Tensor]]:
    rows = rows.sort().values
    return [files[i] for i in rows.tolist()], {head: values[rows] for head, values in classes.items()}


def _from_folders(folder: Path) -> Pictures:
    try:
        found = ImageFolder(folder, is_valid_file=lambda path: Path(path).suffix.lower() in SUFFIXES)
    except FileNotFoundError as error:
        raise UserError(f"{folder} needs a folder per class, each with pictures ({', '.join(SUFFIXES)})") from error
    names = [found.classes[number] for _, number in found.samples]
    return [Path(path) for path, _ in found.samples], {ONLY_HEAD: names}


def _from_table(root: Path, table: Path) -> Pictures:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.table={table.name} cannot be read in {root} ({type(error).__name__})") from error
    heads = [name for name in (rows[0] if rows else ()) if name != "file"]
    if not heads or "file" not in rows[0]:
        raise UserError(f"{table} needs a column 'file', a column for each head, and rows")
    for number, row in enumerate(rows, start=2):
        if None in row or not all(row.values()):
            raise UserError(f"{table}, line {number}: give a file and a class for each head")
    return [root / row["file"] for row in rows], {head: [row[head] for row in rows] for head in heads}
