"""What every data set here has: three splits, served in whole batches and counted for leakage."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from cnnlab.errors import UserError
from cnnlab.models.heads import Head

Batch = tuple[Tensor, dict[str, Tensor]]  # images float32 (B, C, H, W) in [0, 1]; {head: int64 (B,)}

CHUNK = 4096  # images held at once while a split is counted


def stream_seed(seed: int, place: int) -> int:
    """The seed of what is random at an epoch or step `place` of a run with this seed."""
    return seed * 1_000_003 + place


def sample_indices(size: int, count: int) -> Tensor:
    """`count` different numbers of 0..size-1, int64 (count,), in rising order: always the same ones, drawn at random,
    as classes often come in turns and equal steps would meet the same few. `UserError` where there are not so many."""
    if not 1 <= count <= size:
        raise UserError(f"{count} images are not to be had: the split holds {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].sort().values


class BatchedDataset(Dataset[Batch]):
    """One split: image i and its targets are a function of i alone, and come in whole batches."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """The 8-bit images, uint8 (B, C, H, W), of `indices` int64 (B,)."""

    def inputs(self, indices: Tensor) -> Tensor:
        """The images as a network gets them, float32 (B, C, H, W) in [0, 1]."""
        return self.images(indices).float().div_(255)

    @abstractmethod
    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        """{head: int64 (B,)} of `indices` int64 (B,)."""

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """The true pixels of a head's answer, {truth: bool (B, H, W)}; {} where nobody knows them."""
        return {}

    def __getitem__(self, indices: Tensor) -> Batch:
        """A whole batch at once, of `indices` int64 (B,): no Python runs for the single image."""
        return self.inputs(indices), self.targets(indices)


class SeededBatchSampler(Sampler[Tensor]):
    """The shuffled batches of an epoch, indices int64 (B,) each, a pure function of (seed, epoch): a resumed
    run needs no state.

    `resample` counts the indices on from epoch to epoch instead of beginning again at 0. `skip`, an epoch and a
    number of batches, leaves out the first batches of that epoch alone. Of `world_size` processes each takes every
    `world_size`-th image, so that together they see the batches that one process would see; what is left over is
    left out.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, resample: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size // world_size, seed
        self.resample, self.rank, self.world_size = resample, rank, world_size
        self.epoch, self.skip = 0, (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    @property
    def skipped(self) -> int:
        """How many batches of the epoch are left out."""
        epoch, batches = self.skip
        return batches if epoch == self.epoch else 0

    def __len__(self) -> int:
        return math.ceil(self.size // self.world_size / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        skip, self.skip = self.skipped, (0, 0)
        order += self.resample * self.epoch * self.size
        shared = self.size - self.size % self.world_size
        yield from order[self.rank : shared : self.world_size].split(self.batch_size)[skip:]


class SequentialBatchSampler(SequentialSampler):
    """The batches of a split in order, indices int64 (B,) each; of several processes each takes every
    `world_size`-th image, so that every image is served once. Lightning knows it as not shuffled."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batches = torch.arange(rank, size, world_size).split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(self.batches)


class ResumableLoader(DataLoader[Batch]):
    """Knows how many batches of which epoch it has served, so that a run can go on within one. Lightning
    keeps its state in the checkpoint."""

    sampler: SeededBatchSampler
    served = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.served = self.sampler.skipped
        # Without workers straight from the split: the way round through the base class costs a step 0.1 ms.
        batches = super().__iter__() if self.num_workers else map(self.dataset.__getitem__, self.sampler)
        for batch in batches:
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        whole = self.served == len(self)
        return {"epoch": self.sampler.epoch + whole, "served": 0 if whole else self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.epoch = state["epoch"]
        self.sampler.skip = (state["epoch"], state["served"])


def check_targets(name: str, split: BatchedDataset, heads: Sequence[Head]) -> None:
    """Raise `UserError` where a target of a split is not a class of its head, an integer in 0..classes - 1."""
    for rows in torch.arange(len(split)).split(CHUNK):
        targets = split.targets(rows)
        for head in heads:
            values, last = targets[head.name], len(head.classes) - 1
            if values.is_floating_point() or not ((values >= 0) & (values <= last)).all():
                low, high = values.aminmax()
                raise UserError(
                    f"data: the {name} split has targets from {low.item()} to {high.item()} for head '{head.name}'; "
                    f"its classes are the whole numbers 0..{last}"
                )


class ImageDataModule(LightningDataModule):
    """A data set of images: its heads, the shape (C, H, W) of its images and its three splits.

    A subclass sets `heads`, `image_shape` and the splits "train", "val" (may be empty) and "test", at the latest
    in `setup`. Networks are built from `image_shape` and `heads`.
    """

    heads: tuple[Head, ...]
    image_shape: tuple[int, int, int]
    resample_each_epoch: bool = False
    expects: str = "image"  # of `data.outside.EXPECTS`: how images from outside are treated
    names: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, seed: int = 0, batch_size: int = 128, eval_batch_size: int = 500, num_workers: int = 0) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if not 1 <= size < 2**31:
                raise UserError(f"data.{name}={size} must be at least 1, and below 2**31")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} is not in 0..{2**32 - 1}")
        if num_workers < 0:
            raise UserError("data.num_workers must be at least 0")
        self.seed, self.batch_size, self.eval_batch_size = seed, batch_size, eval_batch_size
        self.num_workers = num_workers
        self.splits: dict[str, BatchedDataset] = {}

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Make the splits, once: those of Lightning's `stage` ("fit", "test"), or all."""

    @property
    def has_validation(self) -> bool:
        return len(self.splits["val"]) > 0

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = self._place()
        size = len(self.splits["train"])
        if getattr(self.trainer, "overfit_batches", 0):  # the same few, in order
            return self._loader("train", SequentialBatchSampler(size, self.batch_size, rank, world_size))
        sampler = SeededBatchSampler(size, self.batch_size, self.seed, self.resample_each_epoch, rank, world_size)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._in_order("val") if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader[Batch]:
        sampler = SequentialBatchSampler(len(self.splits[name]), self.eval_batch_size, *self._place())
        return self._loader(name, sampler)

    def _loader(self, name: str, sampler: Sampler[Any]) -> DataLoader[Batch]:
        check_targets(name, self.splits[name], self.heads)
        loader = ResumableLoader if isinstance(sampler, SeededBatchSampler) else DataLoader
        return loader(
            self.splits[name],
            batch_size=None,  # what is drawn are whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            # A generator of its own: the loader must not draw from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        images, targets = batch
        return images.to(device), {name: values.to(device) for name, values in targets.items()}

    def _place(self) -> tuple[int, int]:
        """The number of this process among those of the run, and how many they are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def counts(self, epochs: int = 1) -> dict[str, int]:
        """How many images each split has, how many are distinct, how many distinct ones stand in more than one split
        (`overlap`), and how many of the test in training (`test_in_train`).

        Counted on the 8-bit images as they are served. With `resample_each_epoch` the training images are
        those of all `epochs`.
        """
        seen = {name: self._fingerprints(name, epochs) for name in self.names}
        train, val, test = (seen[name] for name in self.names)
        sizes = {name: len(self.splits[name]) for name in self.names}
        sizes["train"] *= epochs if self.resample_each_epoch else 1
        distinct = {f"distinct_{name}": len(seen[name]) for name in self.names}
        overlap = (test & train) | (test & val) | (val & train)
        return {**sizes, **distinct, "overlap": len(overlap), "test_in_train": len(test & train)}

    def _fingerprints(self, name: str, epochs: int) -> set[bytes]:
        split = self.splits[name]
        size = len(split) * (epochs if self.resample_each_epoch and name == "train" else 1)
        prints: set[bytes] = set()
        for rows in torch.arange(size).split(CHUNK):
            flat = split.images(rows).flatten(1).numpy()
            prints.update(hashlib.blake2b(image, digest_size=16).digest() for image in flat)
        return prints
