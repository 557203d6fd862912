"""Your own pictures, from folders or a table, read when they are needed."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.data.image_io import FORMATS, SUFFIXES, read_image
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError, did_you_mean

Labels = dict[str, list[str]]  # {head: class of each picture}
Pictures = tuple[list[Path], Labels]
ONLY_HEAD = "class"  # of folders
_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLITS = {name: (*words, *(f"{word}_set" for word in words)) for name, words in _WORDS.items()}  # names of folders
log = logging.getLogger(__name__)


class PictureDataset(BatchedDataset):
    """Picture files and {head: classes int64 (N,)}. Pictures of any size and mode become `image_shape` (C, H, W), as
    those that a trained network is shown later."""

    def __init__(self, files: Sequence[Path], classes: dict[str, Tensor], image_shape: tuple[int, int, int]) -> None:
        self.files, self.classes, self.image_shape = list(files), classes, image_shape

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Tensor) -> Tensor:
        pictures = [read_image(self.files[i], self.image_shape, "photo")[0] for i in indices.tolist()]
        return torch.stack(pictures) if pictures else torch.zeros(0, *self.image_shape, dtype=torch.uint8)

    def names(self, indices: Sequence[int]) -> list[str]:
        return [f"{self.files[index].parent.name}/{self.files[index].name}" for index in indices]

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        return {head: values[indices] for head, values in self.classes.items()}


class ImageFolderDataModule(ImageDataModule):
    """Pictures in `root/<class>/`, or in `root/train/<class>/`, `root/test/<class>/` and `root/val/<class>/`.

    Args:
        root: The folder.
        table: A CSV file in `root` instead of folders of classes: a column "file", and a column per head with the class
            of each picture; cells are separated by commas or semicolons. A column "split" says train, val or test.
        size: The side of the images in pixels. Pictures are padded to a square and scaled.
        channels: 3, or 1 for grey.
        val_share, test_share: The shares in [0, 1) that are held out for validation and test where `root` has no such
            folder: about this share of each combination of classes, of rare ones perhaps none.
        split_seed: Chooses them, so that runs with different `seed` share one split.

    Raises:
        UserError: For a missing folder or table, a file that is no picture, or a class without training pictures.
    """

    input_type = "photo"
    counts_first = True

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
        if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
            raise UserError("data.val_share and data.test_share must be at least 0, and below 1 together")
        self.root, self.table = Path(root).expanduser(), table
        self.image_shape = channels, size, size
        self.shares, self.split_seed = {"test": test_share, "val": val_share}, split_seed

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder")
        named = {folder.name.lower(): folder for folder in _folders(self.root)}
        given = {name: named[word] for name, words in SPLITS.items() for word in words if word in named}
        if self.table is not None:
            parts = _by_split(*_from_table(self.root, self.root / self.table))
        elif "train" in given and _folders(given["train"]):
            others = sorted({*named.values()} - {*given.values()})
            if others:
                raise UserError(f"{others[0]} is no split: beside train/ there are val/ and test/, and no other folder")
            parts = {name: _from_folders(folder) for name, folder in given.items()}
        elif given and not {*named.values()} - {*given.values()}:
            raise UserError(
                f"{self.root} holds the splits {', '.join(named)}: train/ is needed, with a folder per class"
            )
        else:
            parts = {"train": _from_folders(self.root)}
        names = {head: {name for _, labels in parts.values() for name in labels[head]} for head in parts["train"][1]}
        self.heads = tuple(Head(head, tuple(sorted(classes))) for head, classes in names.items())
        files, classes = self._numbered(parts["train"])
        taken = torch.zeros(len(files), dtype=torch.int64)  # 0: train, 1: test, 2: val
        for number, (name, share) in enumerate(self.shares.items(), start=1):
            if name not in parts:
                taken[self._held_out(files, classes, taken, share)] = number
        for number, name in enumerate(("train", *self.shares)):
            kept = self._numbered(parts[name]) if name in parts and number else _chosen(files, classes, taken == number)
            self.splits[name] = PictureDataset(*kept, self.image_shape)
        if not len(self.splits["test"]):
            raise UserError("data: no picture is left for the test; add pictures, or raise data.test_share")
        for head in self.heads:
            counts = classes[head.name][taken == 0].bincount(minlength=len(head.classes))
            if not counts.all():
                few = head.classes[int(counts.argmin())]
                raise UserError(f"data: too few pictures, of class '{few}' only {int(counts.min())} for training")

    @cached_property
    def _pictures(self) -> str:
        """A hash of the splits: names, sizes in bytes and classes of the pictures, as the training began."""
        digest = hashlib.blake2b(digest_size=16)
        for name, split in self.splits.items():
            assert isinstance(split, PictureDataset)
            classes = torch.stack(list(split.classes.values()), dim=1).tolist()
            for file, numbers in zip(split.files, classes, strict=True):
                digest.update(f"{name} {self._name(file)} {file.stat().st_size} {numbers}\n".encode())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, str]:
        """Return a hash of the splits for the checkpoint."""
        return {"pictures": self._pictures}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Raise `UserError` where a run has other pictures than it began with."""
        if state_dict != self.state_dict():
            raise UserError(
                f"the pictures in {self.root} are not those that the run began with; bring them back, or train anew"
            )

    def _held_out(self, files: list[Path], classes: dict[str, Tensor], taken: Tensor, share: float) -> Tensor:
        """Return rows int64 (n,) that are not taken: about `share` of the pictures of each combination of classes, the
        first in the order of a hash of their names, so that a new picture moves few others."""
        combined = torch.stack(list(classes.values())).unique(dim=1, return_inverse=True)[1]
        rows = list[int]()
        for group in range(int(combined.max()) + 1):
            members = (combined == group).nonzero()[:, 0].tolist()
            free = sorted((row for row in members if not taken[row]), key=lambda row: self._hash(files[row]))
            chance = self._hash(Path(f"group {group}, {share}"))  # rounds the shares of small groups fairly
            rows += free[: min(int(share * len(members) + chance + 1e-9) if share else 0, len(free) - 1)]
        return torch.tensor(rows, dtype=torch.int64)

    def _hash(self, file: Path) -> float:
        """Return a number in [0, 1) for a file."""
        digest = hashlib.blake2b(f"{self.split_seed}/{self._name(file)}".encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big") / 2**48

    def _name(self, file: Path) -> str:
        return (file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix()

    def _numbered(self, pictures: Pictures) -> tuple[list[Path], dict[str, Tensor]]:
        """Return the files, which are checked to be pictures, and {head: classes int64 (N,)}."""
        files, labels = pictures
        for file in files:
            try:
                with Image.open(file, formats=FORMATS):
                    pass
            except FileNotFoundError as error:
                raise UserError(f"there is no file {file}") from error
            except (OSError, Image.DecompressionBombError) as error:
                raise UserError(f"{file} is no picture that can be read: {', '.join(FORMATS)}") from error
        return files, {h.name: torch.tensor([h.classes.index(name) for name in labels[h.name]]) for h in self.heads}


def _chosen(files: list[Path], classes: dict[str, Tensor], chosen: Tensor) -> tuple[list[Path], dict[str, Tensor]]:
    """Return the files and classes where `chosen` bool (N,) is true."""
    rows = chosen.nonzero()[:, 0]
    return [files[i] for i in rows.tolist()], {head: values[rows] for head, values in classes.items()}


def _folders(folder: Path) -> list[Path]:
    """Return the folders inside, without hidden ones and the `outputs` that the commands make."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(path for path in inside if path.name != "outputs" or any(map(_is_picture, path.iterdir())))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _files(folder: Path) -> list[Path]:
    """Return all files in a folder, its folders and linked ones, without hidden ones."""
    files, known = list[Path](), {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = {name: os.path.realpath(Path(place, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, real in inside.items() if real not in known]  # a link may lead back
        known.update(inside.values())
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _from_folders(folder: Path) -> Pictures:
    files, labels, others, places = list[Path](), list[str](), set[str](), _folders(folder)
    for place in places:
        inside = _files(place)
        pictures = [file for file in inside if _is_picture(file)]
        if not pictures:
            raise UserError(f"{place} holds no pictures ({', '.join(SUFFIXES)})")
        files += pictures
        labels += [place.name] * len(pictures)
        others |= {file.name for file in inside if not _is_picture(file)}
    if not files:
        raise UserError(f"{folder} needs a folder per class, each with pictures ({', '.join(SUFFIXES)})")
    if len(places) == 1 and _folders(places[0]):
        raise UserError(f"{folder} holds one folder, not one per class: move the folders of {places[0]} there")
    if others:
        log.info(f"{folder}: {len(others)} other files are left out, like {min(others)}")
    return files, {ONLY_HEAD: labels}


def _by_split(files: list[Path], labels: Labels) -> dict[str, Pictures]:
    """Return the pictures of each split that the column "split" names; without it all are "train"."""
    if "split" not in labels:
        return {"train": (files, labels)}
    known = {word: name for name, words in SPLITS.items() for word in words}
    marks = [known.get(word.lower()) for word in labels.pop("split")]
    if None in marks or "train" not in marks or not labels:
        raise UserError("data.table: the column 'split' says train, val or test, and a column for each head is needed")

    def of_split(values: Sequence[Any], name: str | None) -> list[Any]:
        return [value for value, mark in zip(values, marks, strict=True) if mark == name]

    return {
        str(name): (of_split(files, name), {head: of_split(values, name) for head, values in labels.items()})
        for name in dict.fromkeys(marks)
    }


def _tables(root: Path) -> list[str]:
    return sorted(file.name for file in root.glob("*.csv"))


def _from_table(root: Path, table: Path) -> Pictures:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            mark = ";" if ";" in first and "," not in first else ","  # as some spreadsheets write it
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=mark) if row] or [[]]
    except FileNotFoundError:
        raise UserError(f"there is no {table.name} in {root}{did_you_mean(table.name, _tables(root))}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.table={table.name} cannot be read in {root} ({type(error).__name__})") from error
    if header.count("file") != 1 or len(set(header)) != len(header) or len(header) < 2 or "" in header or not rows:
        raise UserError(f"{table} needs a column 'file', a column for each head with a name of its own, and rows")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or not all(row):
            raise UserError(f"{table}, line {number}: give a file and a class for each head")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    names = [os.path.normpath(name) for name in columns.pop("file")]
    if len(set(names)) < len(names):
        raise UserError(f"{table} names {next(name for name in names if names.count(name) > 1)} twice")
    return [root / name for name in names], {head: list(values) for head, values in columns.items()}
