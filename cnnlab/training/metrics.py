"""Metrics of networks with several heads, made of torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch, MulticlassF1Score
from torchmetrics.functional import classification as tm

from cnnlab.models.heads import Head

Scores = dict[str, dict[str, Tensor]]  # {head: result of `classification_scores`}


class StageMetrics(nn.Module):
    """The metrics of one stage: the mean loss and the exact match, and for each head its mean loss, its accuracy and,
    with `f1`, its macro-averaged F1. With `persistent` the counts are kept in checkpoints."""

    def __init__(self, heads: Sequence[Head], f1: bool = False, persistent: bool = False) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.exact_match = MulticlassExactMatch(max(len(head.classes) for head in heads), validate_args=False)
        self.losses = nn.ModuleList([MeanMetric() for _ in range(len(heads) + 1)])  # the weighted sum comes last
        self.by_head = nn.ModuleList([_head_metrics(len(head.classes), f1) for head in heads])
        for metric in (self.exact_match, *self.losses, *self.by_head):
            metric.persistent(persistent)

    def update(
        self, loss: Tensor, losses: Tensor, predicted: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> None:
        """Add a batch: the weighted loss, a scalar; the heads' mean losses (heads,); {head: int64 (B,)} twice."""
        size = len(next(iter(targets.values())))
        for metric, value in zip(self.losses, [*losses.detach(), loss.detach()], strict=True):
            metric.update(value, size)  # type: ignore[operator]
        for metric, head in zip(self.by_head, self.heads, strict=True):
            metric.update(predicted[head.name], targets[head.name])  # type: ignore[operator]
        answers, truth = (torch.stack([values[h.name] for h in self.heads], dim=1) for values in (predicted, targets))
        self.exact_match.update(answers, truth)

    def compute(self) -> dict[str, Tensor]:
        """Return {"loss", "acc", "<head>/loss", "<head>/acc", ...: scalar} over all images of all processes."""
        values = {"loss": self.losses[-1].compute(), "acc": self.exact_match.compute()}  # type: ignore[operator]
        for head, loss, metrics in zip(self.heads, self.losses, self.by_head, strict=False):
            values[f"{head.name}/loss"] = loss.compute()  # type: ignore[operator]
            values |= {f"{head.name}/{name}": value for name, value in metrics.compute().items()}  # type: ignore[operator]
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StageMetrics:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for metric in self.losses:  # 16 bits cannot sum the losses of an epoch
            metric.set_dtype(torch.float32)  # type: ignore[operator]
        return self

    def reset(self) -> None:
        """Start anew."""
        for metric in (self.exact_match, *self.losses, *self.by_head):
            metric.reset()


class MacroF1(MulticlassF1Score):
    """The mean F1 score of the classes that have images, in [0, 1], as `test/<head>/f1`."""

    tp: Tensor
    fn: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Return the mean over classes with images, a scalar."""
        by_class: Tensor = super().compute()
        return by_class[self.tp + self.fn > 0].mean()


def _head_metrics(classes: int, f1: bool) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": MulticlassAccuracy(classes, average="micro", validate_args=False)
    }
    if f1:
        metrics["f1"] = MacroF1(classes)
    return MetricCollection(metrics, compute_groups=False)


@dataclass(frozen=True)
class Predictions:
    """The predictions for N images in their order: {head: int64 (N,)} of predictions and targets, and the probability
    float32 (N,) of the true classes, the product over the heads."""

    predicted: dict[str, Tensor]
    targets: dict[str, Tensor]
    true_probability: Tensor

    def correct(self) -> Tensor:
        """Return which heads are right, bool (heads, N)."""
        return torch.stack([self.predicted[name] == self.targets[name] for name in self.predicted])


class PredictionCollector(Metric):
    """Collects the predictions of a split that several processes share."""

    rows: list[Tensor]
    predicted: list[Tensor]
    targets: list[Tensor]
    probability: list[Tensor]

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        for name in ("rows", "predicted", "targets", "probability"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Add a batch: the images' places in the split int64 (B,), {head: logits (B, units)} and {head: (B,)}."""
        probability = torch.ones(len(rows), device=rows.device)
        for head in self.heads:
            probabilities = head.probabilities(logits[head.name])
            probability = probability * probabilities.gather(1, targets[head.name][:, None])[:, 0]
        self.rows.append(rows)
        self.predicted.append(torch.stack([head.predict(logits[head.name]) for head in self.heads], dim=1))
        self.targets.append(torch.stack([targets[head.name] for head in self.heads], dim=1))
        self.probability.append(probability)

    def compute(self) -> tuple[Tensor, ...]:
        """Return rows, predictions, targets and probabilities of all processes, in no order."""
        parts = (self.rows, self.predicted, self.targets, self.probability)
        return tuple(torch.cat(part) if isinstance(part, list) else part for part in parts)

    def predictions(self) -> Predictions:
        """Return the predictions of all processes, on the CPU, in the order of the split."""
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
