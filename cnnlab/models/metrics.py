"""Metrics of networks with several heads, for torchmetrics: one small update a step, in step across processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import classification as tm

from cnnlab.models.heads import Head

Scores = dict[str, dict[str, Tensor]]  # {head: what `classification_scores` gives}


class EpochMeans(Metric):
    """Means over all images of an epoch of several numbers at once: one addition a step.

    torchmetrics has a metric for one number, of which a network with four heads would need ten.
    `persistent` keeps what was summed up in the checkpoint, which may be written in the middle of an epoch.
    """

    sums: Tensor
    images: Tensor

    def __init__(self, names: Sequence[str], persistent: bool = False) -> None:
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
        """{name: mean over all images of all processes}, and "images", their number."""
        images = int(self.images)
        totals = zip(self.names, self.sums.tolist(), strict=True)
        return {name: total / max(1, images) for name, total in totals} | {"images": images}


@dataclass(frozen=True)
class Predictions:
    """What a network said to N images, in their order: {head: int64 (N,)} of its predictions and of the
    targets, and the probability, float32 (N,), that its heads together gave to the truth."""

    predicted: dict[str, Tensor]
    targets: dict[str, Tensor]
    truth_probability: Tensor

    def correct(self) -> Tensor:
        """Which heads are right, bool (heads, N)."""
        return torch.stack([self.predicted[name] == self.targets[name] for name in self.predicted])


class PredictionCollector(Metric):
    """Collects the predictions of a split that several processes share out, as `SequentialBatchSampler` does."""

    rows: list[Tensor]
    predicted: list[Tensor]
    targets: list[Tensor]
    probability: list[Tensor]

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        for name in ("rows", "predicted", "targets", "probability"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, logits: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        """`rows` int64 (B,) are the images' places in the split; {head: logits (B, units)} and {head: (B,)}."""
        probability = torch.ones(len(rows), device=rows.device)
        for head in self.heads:
            probabilities = head.probabilities(logits[head.name])
            probability = probability * probabilities.gather(1, targets[head.name][:, None])[:, 0]
        self.rows.append(rows)
        self.predicted.append(torch.stack([head.predict(logits[head.name]) for head in self.heads], dim=1))
        self.targets.append(torch.stack([targets[head.name] for head in self.heads], dim=1))
        self.probability.append(probability)

    def compute(self) -> tuple[Tensor, ...]:
        """Rows, predictions, targets and probabilities of all processes, in no order."""
        parts = (self.rows, self.predicted, self.targets, self.probability)
        return tuple(torch.cat(part) if isinstance(part, list) else part for part in parts)

    def predictions(self) -> Predictions:
        """All predictions of all processes, on the CPU, in the order of the split."""
        rows, predicted, targets, probability = (part.cpu() for part in self.compute())
        order = rows.argsort()

        def by_head(values: Tensor) -> dict[str, Tensor]:
            return {head.name: values[order, i] for i, head in enumerate(self.heads)}

        return Predictions(by_head(predicted), by_head(targets), probability[order])


def classification_scores(heads: Sequence[Head], predictions: Predictions) -> Scores:
    """Return the scores of each head, by torchmetrics.

    "class_f1", "class_precision" and "class_recall" are float32 (classes,), NaN for a class without images; "f1",
    "precision" and "recall" are their means over the classes that have images, scalars in [0, 1]; "confusion" is int64
    (classes, classes), true classes by row.
    """
    return {
        head.name: _scores(predictions.predicted[head.name], predictions.targets[head.name], len(head.classes))
        for head in heads
    }


def _scores(predicted: Tensor, targets: Tensor, classes: int) -> dict[str, Tensor]:
    confusion = tm.multiclass_confusion_matrix(predicted, targets, num_classes=classes)
    present = confusion.sum(dim=1) > 0
    scores: dict[str, Tensor] = {"confusion": confusion}
    functions = {"f1": tm.multiclass_f1_score, "precision": tm.multiclass_precision, "recall": tm.multiclass_recall}
    for name, function in functions.items():
        by_class = function(predicted, targets, num_classes=classes, average="none").where(present, torch.nan)
        scores |= {name: by_class.nanmean(), f"class_{name}": by_class}
    return scores
