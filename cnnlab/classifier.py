"""Training and testing a network with one or more heads: the loss, the metrics, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection
from torchmetrics import classification as tm

from cnnlab import Diverged, UserError
from cnnlab.data.splits import Batch
from cnnlab.heads import Head
from cnnlab.nets import Net
from cnnlab.schedules import Schedule
from cnnlab.weighting import Weighting


class Tally(Metric):
    """Means over all images of an epoch of several numbers at once: one small addition a step."""

    sums: Tensor
    images: Tensor

    def __init__(self, names: Iterable[str], persistent: bool = False) -> None:
        super().__init__()
        self.names = tuple(names)
        sums, images = torch.zeros(len(self.names)), torch.zeros((), dtype=torch.int64)
        self.add_state("sums", sums, dist_reduce_fx="sum", persistent=persistent)
        self.add_state("images", images, dist_reduce_fx="sum", persistent=persistent)

    def update(self, sums: Tensor, images: int) -> None:
        """`sums` float (names,) over a batch of `images` images. A count of images stays exact in float32."""
        self.sums += sums.detach()
        self.images += images

    def compute(self) -> dict[str, float]:
        """{name: mean over all images}."""
        images = max(1, int(self.images))
        return {name: total / images for name, total in zip(self.names, self.sums.tolist(), strict=True)}


def class_metrics(classes: int) -> MetricCollection:
    """The metrics of one head on the test split beside its accuracy, which the tally keeps, from predictions
    and targets int64 (B,)."""
    each: dict[str, Any] = {"num_classes": classes, "average": "none"}
    macro: dict[str, Any] = {"num_classes": classes, "average": "macro"}
    return MetricCollection(
        {
            "f1": tm.MulticlassF1Score(**macro),
            "precision": tm.MulticlassPrecision(**macro),
            "recall": tm.MulticlassRecall(**macro),
            "class_f1": tm.MulticlassF1Score(**each),
            "class_precision": tm.MulticlassPrecision(**each),
            "class_recall": tm.MulticlassRecall(**each),
            "confusion": tm.MulticlassConfusionMatrix(num_classes=classes),
        }
    )


@dataclass(frozen=True)
class Answers:
    """What a network said to images: {head: int64 (N,)} of its predictions and of the targets, and the
    probability, float32 (N,), that its heads together gave to the truth."""

    predicted: dict[str, Tensor]
    targets: dict[str, Tensor]
    truth: Tensor

    @staticmethod
    def joined(batches: Sequence[Answers]) -> Answers:
        """All batches as one, on the CPU."""

        def heads(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

        return Answers(
            heads([batch.predicted for batch in batches]),
            heads([batch.targets for batch in batches]),
            torch.cat([batch.truth for batch in batches]).cpu(),
        )

    def right(self) -> Tensor:
        """Which heads are right, bool (heads, N)."""
        return torch.stack([self.predicted[name] == self.targets[name] for name in self.predicted])


class Classifier(L.LightningModule):
    """A network with its heads, trained on the weighted sum of the heads' losses.

    `optimizer` takes the parameters; `schedule` takes the optimizer and the number of steps. `augment`
    changes the images float32 (B, C, 28, 28) of a training batch. `l2` times the sum of squares of every
    head's last kernel is added to the loss (Keras's `kernel_regularizer`). With `train_heads` only these
    branches are trained; everything else is frozen and in evaluation mode.

    Whatever is random in a training step (augmentation, dropout) is a function of (seed, step), so a
    resumed run needs no random state.
    """

    def __init__(
        self,
        net: Net,
        heads: tuple[Head, ...],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer, int], Schedule],
        weighting: Weighting,
        augment: Callable[[Tensor], Tensor] | None = None,
        l2: float = 0.0,
        train_heads: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.heads, self.weighting, self.augment = net, heads, weighting, augment or nn.Identity()
        if not l2 >= 0:
            raise UserError(f"l2={l2} must be at least 0")
        self.make_optimizer, self.make_schedule, self.l2, self.seed = optimizer, schedule, l2, seed
        self.train_heads = tuple(train_heads)
        for name in train_heads:
            if name not in net.head_names:
                raise UserError(f"train_heads: there is no head '{name}'; heads: {', '.join(net.head_names)}")
        for name, part in net.named_children():
            if train_heads and name not in train_heads:
                part.requires_grad_(False).eval()  # Lightning leaves a part's mode as it is
        names = ["loss", "joint_accuracy"]
        names += [f"{head.name}_{what}" for what in ("loss", "accuracy") for head in heads]
        # That of training lies in a checkpoint, which may be written in the middle of an epoch.
        self.tallies = nn.ModuleDict(
            {f"{stage}_tally": Tally(names, stage == "train") for stage in ("train", "val", "test")}
        )
        self.metrics = nn.ModuleDict({head.name: class_metrics(len(head.classes)) for head in heads})
        self.answers: list[Answers] = []  # to the test split, batch by batch

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)  # type: ignore[no-any-return]

    def tally(self, stage: str) -> Tally:
        """The running means of "train", "val" or "test"."""
        tally = self.tallies[f"{stage}_tally"]
        assert isinstance(tally, Tally)
        return tally

    def step(self, batch: Batch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, a scalar, and {head: logits}; the unweighted numbers go to the tally."""
        images, targets = batch
        logits = self(images)
        losses = torch.stack([head.loss(logits[head.name], targets[head.name]) for head in self.heads])
        loss: Tensor = self.weighting(losses)
        if stage == "train" and not math.isfinite(losses.sum().item()):
            # The first that is not finite; the first of all where only their sum is not.
            head = self.heads[int((~torch.isfinite(losses)).int().argmax())]
            value = losses[self.heads.index(head)].item()
            raise Diverged(f"step {self.global_step + 1}: the loss of head '{head.name}' is {value}")
        if self.l2:
            loss = loss + self.l2 * sum(kernel.square().sum() for kernel in self.net.last_kernels())
        with torch.no_grad():
            right = [head.predict(logits[head.name]) == targets[head.name] for head in self.heads]
            stacked = torch.stack(right).float()  # (heads, B)
            both = stacked.amin(dim=0).sum()
            parts = [loss[None] * len(images), both[None], losses * len(images), stacked.sum(dim=1)]
            sums = torch.cat(parts)
            self.tally(stage).update(sums, len(images))
        return loss, logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed = self.seed * 1_000_003 + self.global_step + (self.global_rank << 40)
        if self.device.type == "cpu":  # the other devices' generators cost a millisecond a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        return self.step((self.augment(images), targets), "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        targets = batch[1]
        _, logits = self.step(batch, "test")
        predicted = {head.name: head.predict(logits[head.name]) for head in self.heads}
        truth = torch.ones(len(batch[0]), device=self.device)  # probability that all heads give to the truth
        for head in self.heads:
            probabilities = head.probabilities(logits[head.name])
            truth = truth * probabilities.gather(1, targets[head.name][:, None])[:, 0]
            self.metrics[head.name].update(predicted[head.name], targets[head.name])  # type: ignore[operator]
        self.answers.append(Answers(predicted, targets, truth))

    def on_train_epoch_start(self) -> None:
        self.tally("train").reset()

    def on_validation_epoch_start(self) -> None:
        self.tally("val").reset()

    def on_validation_epoch_end(self) -> None:
        means = self.tally("val").compute()
        self.log("watched_loss", means["loss"])
        # Images wrong, and the loss, squashed below one image, to decide between equals.
        wrong = (1 - means["joint_accuracy"]) * float(self.tally("val").images)
        self.log("val_errors", round(wrong) + 0.5 + math.atan(means["loss"]) / math.pi)

    def on_train_epoch_end(self) -> None:
        means = self.tally("train").compute()
        if not self.trainer.val_dataloaders:
            self.log("watched_loss", means["loss"])
        self.weighting.epoch_ended(torch.tensor([means[f"{head.name}_loss"] for head in self.heads]))

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained: of the network, and of the weighting where it learns."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.trained())
        # Not Lightning's own estimate: it would begin to serve data before a resumed run knows from where.
        steps = (self.trainer.max_epochs or 0) * len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer, steps)}
