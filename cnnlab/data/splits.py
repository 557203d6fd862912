"""What every data set here has: three splits, served in whole batches and counted for leakage."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cnnlab import UserError
from cnnlab.heads import Head

Batch = tuple[Tensor, dict[str, Tensor]]  # images float32 (B, C, 28, 28) in [0, 1]; {head: int64 (B,)}

COUNT_CHUNK = 4096  # images held at once while a split is counted


class Split(Dataset[Batch]):
    """One part of a data set: image i and its targets are a function of i alone."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """The 8-bit images, uint8 (B, C, 28, 28), of `indices` int64 (B,)."""

    def inputs(self, indices: Tensor) -> Tensor:
        """The images as a network gets them, float32 (B, C, 28, 28) in [0, 1]."""
        return self.images(indices).float().div_(255)

    @abstractmethod
    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        """{head: int64 (B,)} of `indices` int64 (B,)."""

    def __getitem__(self, indices: Tensor) -> Batch:
        """A whole batch at once, of `indices` int64 (B,): no Python runs for the single image."""
        return self.inputs(indices), self.targets(indices)


class Shuffle(Sampler[Tensor]):
    """The batches of an epoch, indices int64 (B,) each, a pure function of (seed, epoch): a resumed run needs
    no state.

    `fresh` counts the indices on from epoch to epoch instead of beginning again at 0. `skip` leaves out
    the first batches of the next epoch alone. Of `world` processes each takes every `world`-th image, so that
    together they see the batches that one process would see; what is left over is left out.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, fresh: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed, self.fresh = size, batch_size // world, seed, fresh
        self.rank, self.world, self.epoch, self.skip = rank, world, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size // self.world / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        skip, self.skip = self.skip, 0
        order += self.fresh * self.epoch * self.size
        shared = self.size - self.size % self.world
        yield from order[self.rank : shared : self.world].split(self.batch_size)[skip:]


class TrainLoader(DataLoader[Batch]):
    """Knows how many batches of which epoch it has served, so that a run can go on within one. Lightning
    keeps its state in the checkpoint."""

    sampler: Shuffle
    served = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.served = self.sampler.skip
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
        self.sampler.skip = state["served"]


def _as_served(batch: Batch) -> Batch:
    return batch


class LabData(LightningDataModule):
    """A data set of this lab: its heads, its channels and its three splits.

    A subclass names `heads` and `in_channels` when it is built, and makes the splits in `setup`
    (`val` may be empty). The network is built from `in_channels` and `heads`.
    """

    heads: tuple[Head, ...]
    in_channels: int
    splits: dict[str, Split]
    fresh: bool = False
    names: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, seed: int, batch_size: int, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1:
            raise UserError("data.batch_size and data.eval_batch_size must be at least 1")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} is not in 0..{2**32 - 1}")
        if num_workers < 0:
            raise UserError("data.num_workers must be at least 0")
        self.seed, self.batch_size, self.eval_batch_size = seed, batch_size, eval_batch_size
        self.num_workers = num_workers

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Make the splits, once: those of Lightning's `stage` ("fit", "test"), or all."""

    def _loader(self, name: str, batches: Shuffle | Sequence[Tensor]) -> DataLoader[Batch]:
        kind = TrainLoader if isinstance(batches, Shuffle) else DataLoader
        return kind(
            self.splits[name],
            batch_size=None,  # what is drawn are whole batches
            sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_as_served,  # type: ignore[arg-type]
            # A generator of its own: the loader must not draw from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
            persistent_workers=False,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._place()
        if self.batch_size % world:
            raise UserError(f"data.batch_size={self.batch_size} cannot be shared out to {world} processes")
        size = len(self.splits["train"])
        return self._loader("train", Shuffle(size, self.batch_size, self.seed, self.fresh, rank, world))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._in_order("val") if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader[Batch]:
        """Every image once, in one process or another."""
        rank, world = self._place()
        mine = torch.arange(rank, len(self.splits[name]), world)
        return self._loader(name, mine.split(self.eval_batch_size))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        images, targets = batch
        return images.to(device), {name: values.to(device) for name, values in targets.items()}

    def _place(self) -> tuple[int, int]:
        """The number of this process among those of the run, and how many they are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def counts(self, epochs: int = 1) -> dict[str, int]:
        """How many images each split has, how many are distinct, and how many test images (distinct)
        also stand in training or validation or the validation ones in training (`overlap`).

        Counted on the 8-bit images as they are served. With `fresh` the training images are those
        of all `epochs`.
        """
        seen = {name: self._fingerprints(name, epochs) for name in self.names}
        train, val, test = (seen[name] for name in self.names)
        sizes = {name: len(self.splits[name]) for name in self.names}
        sizes["train"] *= epochs if self.fresh else 1
        distinct = {f"distinct_{name}": len(seen[name]) for name in self.names}
        return {**sizes, **distinct, "overlap": len(test & (train | val)) + len(val & train)}

    def _fingerprints(self, name: str, epochs: int) -> set[bytes]:
        split = self.splits[name]
        size = len(split) * (epochs if self.fresh and name == "train" else 1)
        prints: set[bytes] = set()
        for rows in torch.arange(size).split(COUNT_CHUNK):
            flat = split.images(rows).flatten(1).numpy()
            prints.update(hashlib.blake2b(image, digest_size=16).digest() for image in flat)
        return prints
