"""cnnlab's own contestants: the training of the command, and a loop as one would write it by hand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as L
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cnnlab.data.datamodule import ImageDataModule
from cnnlab.training.build import build_classifier, build_datamodule, build_trainer
from cnnlab.training.callbacks import MetricsHistory
from cnnlab.training.classifier import Classifier
from cnnlab.utils import hardware
from cnnlab.utils.cli import CONF
from cnnlab.utils.console import quiet_lightning
from research.performance.side_by_side import avx2_alone


def configuration(*overrides: str) -> DictConfig:
    """What `python -m cnnlab.train <overrides>` would train; with AVX2 alone in float32, as it would there."""
    known = ["trainer.precision=32-true"] if avx2_alone() else []  # "auto" asks the processor, which knows more
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [*overrides, *known])


def arrays(data: ImageDataModule, stage: str) -> tuple[Any, dict[str, Any]]:
    """Images uint8 (N, C, 28, 28) and {head: int64 (N,)} of a split, in memory, for another library."""
    rows = torch.arange(len(data.splits[stage]))
    targets = data.splits[stage].targets(rows)
    images = torch.cat([data.splits[stage].images(part) for part in rows.split(4096)])
    return images.numpy(), {name: values.numpy() for name, values in targets.items()}


@dataclass(frozen=True)
class Job:
    """A training as the command makes it."""

    trainer: L.Trainer
    classifier: Classifier
    data: ImageDataModule

    @property
    def rows(self) -> list[dict[str, float]]:
        return next(c.rows for c in self.trainer.callbacks if isinstance(c, MetricsHistory))  # type: ignore[attr-defined]


@contextmanager
def job(cfg: DictConfig) -> Iterator[Job]:
    """A silent training in a temporary folder."""
    quiet_lightning()
    hardware.disable_malloc_trim()
    with tempfile.TemporaryDirectory() as folder:
        data = build_datamodule(cfg, "fit")
        yield Job(build_trainer(cfg, Path(folder)), build_classifier(cfg, data), data)


def epoch_seconds(cfg: DictConfig) -> float:
    """Train one epoch through Lightning and the data module; the seconds of its steps, as `metrics.csv`
    has them."""
    with job(cfg) as run:
        run.trainer.fit(run.classifier, datamodule=run.data)
        return run.rows[-1]["seconds"]


class ByHand:
    """A plain loop with the losses, optimizer and schedule of `cfg` on float32 images in memory. It keeps the running
    loss and the heads' accuracies, as ours and Keras do. By default the network of `cfg`."""

    def __init__(
        self, cfg: DictConfig, net: nn.Module | None = None, channels_last: bool = True, compiled: bool = False
    ) -> None:
        data = build_datamodule(cfg, "fit")
        pixels, targets = arrays(data, "train")
        self.images = torch.from_numpy(pixels).float() / 255
        self.targets = {name: torch.from_numpy(values) for name, values in targets.items()}
        self.cfg, self.heads = cfg, data.heads
        self.net = (net or build_classifier(cfg, data).net).train()
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.run: Callable[[Tensor], dict[str, Tensor]] = torch.compile(self.net) if compiled else self.net

    def __call__(self) -> float:
        net, heads = self.net, self.heads
        batch_size, bf16 = self.cfg.data.batch_size, hardware.precision(self.cfg.trainer.precision)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.cfg.optimizer.lr, eps=1e-7, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.cfg.optimizer.lr, total_steps=len(self.images) // batch_size
        )
        start = time.perf_counter()
        total, right = torch.zeros(()), torch.zeros(len(heads))
        for rows in torch.randperm(len(self.images)).split(batch_size):
            images: Tensor = self.images[rows]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16 == "bf16-mixed"):
                logits = self.run(images)
                losses = [head.loss(logits[head.name], self.targets[head.name][rows]) for head in heads]
                loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            with torch.no_grad():
                for number, head in enumerate(heads):
                    right[number] += (head.predict(logits[head.name]) == self.targets[head.name][rows]).sum()
        return time.perf_counter() - start
