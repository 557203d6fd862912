"""The base of all data modules: three splits, served in whole batches, resumable, and counted for leakage."""

from __future__ import annotations

import hashlib
import math
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError

Batch = tuple[Tensor, dict[str, Tensor]]  # images float32 (B, C, H, W) in [0, 1]; {head: int64 (B,)}

CHUNK = 4096  # images in memory while a split is counted


def stream_seed(seed: int, place: int) -> int:
    """Return the seed of an epoch or step `place` in a run with this seed."""
    return seed * 1_000_003 + place


def sample_indices(size: int, count: int) -> Tensor:
    """Return `count` random numbers of 0..size-1 in rising order, int64 (count,), always the same. Raises `UserError`
    where there are not so many."""
    if not 1 <= count <= size:
        raise UserError(f"{count} images are too many or too few: the split has {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count].sort().values


class BatchedDataset(Dataset[Batch]):
    """One split. `dataset[i]` is one image with its targets; a batch is drawn at once, also for PyTorch's own loaders.

    Image i and its targets are a function of i alone. A subclass defines `__len__`, `images` and `targets`.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def images(self, indices: Tensor) -> Tensor:
        """Return the 8-bit images uint8 (B, C, H, W) of `indices` int64 (B,)."""
        raise NotImplementedError

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        """Return {head: int64 (B,)} of `indices` int64 (B,)."""
        raise NotImplementedError

    def inputs(self, indices: Tensor) -> Tensor:
        """Return the images as a network gets them, float32 (B, C, H, W) in [0, 1]."""
        return self.images(indices).float().div_(255)

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images for captions: their numbers; a subclass may know files."""
        return [f"test image {index}" for index in indices]

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """Return the right pixels for a head's question, {truth: bool (B, H, W)}; {} where they are unknown."""
        return {}

    def __getitem__(self, index: int) -> Batch:
        """Return one image float32 (C, H, W) and {head: int64 ()}."""
        if not -len(self) <= operator.index(index) < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> list[Batch]:
        """Return several images with their targets, drawn at once; PyTorch's loaders call this for a batch."""
        images, targets = self.batch(indices)
        return [(image, {name: values[i] for name, values in targets.items()}) for i, image in enumerate(images)]

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Return a batch: images float32 (B, C, H, W) and {head: int64 (B,)}."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.inputs(rows), self.targets(rows)


class SeededBatchSampler(Sampler[Tensor]):
    """The shuffled batches of an epoch, indices int64 (B,) each, as a function of (seed, epoch).

    `resample` counts the indices on from epoch to epoch. `skip` = (epoch, batches) leaves out the first batches of that
    epoch. Of `world_size` processes each takes every `world_size`-th image; a remainder is left out. So is a last batch
    of a single image, which BatchNorm may refuse.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, resample: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size // world_size, seed
        used = size - (size % batch_size == 1 < size)
        self.shared = used - used % world_size
        self.resample, self.rank, self.world_size = resample, rank, world_size
        self.epoch, self.skip = 0, (0, 0)
        self.sampler = self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    @property
    def skipped(self) -> int:
        """How many batches of the epoch are left out."""
        epoch, batches = self.skip
        return batches if epoch == self.epoch else 0

    def __len__(self) -> int:
        return math.ceil(self.shared // self.world_size / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        skip, self.skip = self.skipped, (0, 0)
        order += self.resample * self.epoch * self.size
        yield from order[self.rank : self.shared : self.world_size].split(self.batch_size)[skip:]


def in_order(size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> BatchSampler:
    """Return the batches of a split in order. Of `world_size` processes each takes every `world_size`-th image."""
    return BatchSampler(range(rank, size, world_size), batch_size, drop_last=False)


class BatchLoader(DataLoader[Batch]):
    """A loader that takes whole batches from a `BatchedDataset`; without workers nothing is collated."""

    dataset: BatchedDataset

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.num_workers:
            return super().__iter__()
        return map(self.dataset.batch, self.batch_sampler)  # type: ignore[arg-type]


class ResumableLoader(BatchLoader):
    """Counts the batches it has served, so that a run can go on within an epoch. Lightning keeps its state in the
    checkpoint."""

    batch_sampler: SeededBatchSampler  # type: ignore[assignment]
    served = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.served = self.batch_sampler.skipped
        for batch in super().__iter__():
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        whole = self.served == len(self)
        return {"epoch": self.batch_sampler.epoch + whole, "served": 0 if whole else self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.skip = (state["epoch"], state["served"])


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
    """A data set of images. A subclass sets `heads`, `image_shape` (C, H, W) and the splits "train", "val" (may be
    empty) and "test", at the latest in `setup`.

    Args:
        seed: The seed of the order of training images, in 0..2**32 - 1.
        batch_size: Images of a training batch, of all processes together.
        eval_batch_size: Images of a validation or test batch.
        num_workers: Processes that load batches.

    Several processes share out the batches themselves: a Trainer of your own needs `use_distributed_sampler=False`.
    """

    heads: tuple[Head, ...]
    image_shape: tuple[int, int, int]
    resample_each_epoch: bool = False
    counts_first: ClassVar[bool] = False  # before the training, so that it does not end at an unreadable image
    input_type: str = "image"  # of `data.image_io.INPUT_TYPES`: how images from outside are converted
    names: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, seed: int = 0, batch_size: int = 128, eval_batch_size: int = 500, num_workers: int = 0) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if not 1 <= size < 2**31:
                raise UserError(f"data.{name}={size} must be at least 1, and below 2**31")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} is not in 0..{2**32 - 1}")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} must be at least 0")
        self.seed, self.batch_size, self.eval_batch_size = seed, batch_size, eval_batch_size
        self.num_workers = num_workers
        self.splits: dict[str, BatchedDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Make the splits of Lightning's `stage` ("fit", "test"), or all, once."""
        raise NotImplementedError

    @property
    def has_validation(self) -> bool:
        return len(self.splits["val"]) > 0

    def train_dataloader(self) -> DataLoader[Batch]:
        size, place = len(self.splits["train"]), self._process()
        if getattr(self.trainer, "overfit_batches", 0):  # the same few, in order
            return self._loader("train", in_order(size, self.batch_size, *place))
        return self._loader(
            "train", SeededBatchSampler(size, self.batch_size, self.seed, self.resample_each_epoch, *place)
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._in_order("val") if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def _in_order(self, name: str) -> DataLoader[Batch]:
        return self._loader(name, in_order(len(self.splits[name]), self.eval_batch_size, *self._process()))

    def _loader(self, name: str, batch_sampler: Sampler[Any]) -> DataLoader[Batch]:
        check_targets(name, self.splits[name], self.heads)
        loader = ResumableLoader if isinstance(batch_sampler, SeededBatchSampler) else BatchLoader
        return loader(
            self.splits[name],
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            # The loader must not draw from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _process(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def counts(self, epochs: int = 1) -> dict[str, int]:
        """Count the images of each split, the distinct ones, the distinct ones in more than one split (`overlap`), and
        the test images that are also training images (`test_in_train`).

        Compares 8-bit images. With `resample_each_epoch` all `epochs` are counted.
        """
        seen = {name: self._fingerprints(name, epochs) for name in self.names}
        train, val, test = (seen[name] for name in self.names)
        sizes = {name: len(self.splits[name]) for name in self.names}
        sizes["train"] *= epochs if self.resample_each_epoch else 1
        distinct = {f"distinct_{name}": len(seen[name]) for name in self.names}
        overlap = {*test} & ({*train} | {*val}) | {*val} & {*train}
        seen_in_test = sum(count for image, count in test.items() if image in train)
        return {**sizes, **distinct, "overlap": len(overlap), "test_in_train": seen_in_test}

    def _fingerprints(self, name: str, epochs: int) -> Counter[bytes]:
        """Return how often each image is in a split, by its hash."""
        split = self.splits[name]
        size = len(split) * (epochs if self.resample_each_epoch and name == "train" else 1)
        prints: Counter[bytes] = Counter()
        at_once = max(1, min(CHUNK, 10_000_000 // math.prod(self.image_shape)))
        for rows in torch.arange(size).split(at_once):
            flat = split.images(rows).flatten(1).numpy()
            prints.update(hashlib.blake2b(image, digest_size=16).digest() for image in flat)
        return prints
