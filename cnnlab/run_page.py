"""A run's tables and pictures, from what its test found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab import plots
from cnnlab.callbacks.metrics_history import Row
from cnnlab.data.datamodule import ImageDataModule
from cnnlab.io import to_csv, write_atomically
from cnnlab.log import percent
from cnnlab.models.heads import Head
from cnnlab.models.metrics import Predictions, Scores

SHOWN = 12  # pictures in a grid


def write_figures(
    folder: Path, data: ImageDataModule, rows: list[Row], predictions: Predictions, scores: Scores
) -> None:
    """Write the pictures of a tested network, PNGs, to a new `folder`; `rows` are those of `metrics.csv`. What would
    only say that everything is right is not drawn."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):  # of a run that went on
        old.unlink()
    heads = data.heads
    drawn = {"samples": _samples(data), "mistakes": _mistakes(data, predictions)}
    if rows:
        drawn |= _by_epoch(rows, heads)
    erring = [head for head in heads if (scores[head.name]["class_recall"] < 1).any()]
    if erring:
        drawn["f_scores"] = _f_scores(heads, scores)
    if erring and len(heads) > 1:
        drawn["by_class"] = plots.by_class(accuracies_by_class(heads, predictions))
    for head in erring:
        parts = [(part.name, part.classes) for part in head.parts]
        drawn[f"confusion_{head.name}"] = plots.confusion(
            scores[head.name]["confusion"].numpy(), head.classes, head.name, parts
        )
    for name, figure in drawn.items():
        plots.save(figure, folder / f"{name}.png")


def accuracies_by_class(heads: Sequence[Head], predictions: Predictions) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {class: {"joint_accuracy" and each head's name: accuracy on the test images of that class}}}."""
    right = predictions.correct()
    rows = {"joint_accuracy": right.all(dim=0), **dict(zip(predictions.predicted, right, strict=True))}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for head in heads:
        for number, name in enumerate(head.classes):
            these = predictions.targets[head.name] == number
            if these.any():
                scores = {row: values[these].double().mean().item() for row, values in rows.items()}
                found.setdefault(head.name, {})[name] = scores
    return found


def _by_epoch(rows: list[Row], heads: Sequence[Head]) -> dict[str, plots.Figure]:
    """Learning curves; the weights of the losses, where they were learned; what callbacks logged of the heads."""
    drawn = {"curves": _curves(rows, heads)}
    weights = {head.name: [row[f"train/{head.name}/weight"] for row in rows] for head in heads}
    if any(len(set(values)) > 1 for values in weights.values()):
        drawn["weights"] = plots.by_epoch(weights, "weight of the loss", logarithmic=True)
    stage = "val" if any("val/loss" in row for row in rows) else "train"
    keys = {head.name: f"{stage}/{head.name}/grad_cam_rank_accuracy" for head in heads}
    if any(key in row for row in rows for key in keys.values()):
        lines = {name: [row.get(key, math.nan) for row in rows] for name, key in keys.items()}
        drawn["grad_cam"] = plots.by_epoch(lines, "rank accuracy of Grad-CAM")
    return drawn


def write_tables(folder: Path, heads: Sequence[Head], values: Scores) -> None:
    """Write `classes.csv`, the scores of every class, and `confusion_<head>.csv`."""
    for head in heads:
        confusion = values[head.name]["confusion"].tolist()
        write_atomically(
            folder / f"confusion_{head.name}.csv",
            to_csv(
                [
                    {"true": name, **dict(zip(head.classes, counts, strict=True))}
                    for name, counts in zip(head.classes, confusion, strict=True)
                ]
            ),
        )
    write_atomically(folder / "classes.csv", to_csv(class_rows(heads, values)))


def class_rows(heads: Sequence[Head], values: Scores) -> list[dict[str, Any]]:
    """A row a class: its head, its name, precision, recall and F1 in [0, 1] (None for a class without images), how many
    images it has (`support`), and for which class it is most often taken, where it ever is (`taken_for`)."""
    rows: list[dict[str, Any]] = []
    for head in heads:
        value, confusion = values[head.name], values[head.name]["confusion"]
        others = confusion.clone().fill_diagonal_(0)
        for i, name in enumerate(head.classes):
            support = int(confusion[i].sum())
            scores = {
                score: value[f"class_{score}"][i].item() if support else None for score in ("precision", "recall", "f1")
            }
            taken_for = head.classes[int(others[i].argmax())] if others[i].any() else ""
            rows.append({"head": head.name, "class": name, **scores, "support": support, "taken_for": taken_for})
    return rows


def _samples(data: ImageDataModule) -> plots.Figure:
    split = data.splits["train"]
    rows = torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long()
    targets = split.targets(rows)
    captions = [_classes(data.heads, targets, i) for i in range(len(rows))]
    return plots.images(split.images(rows).numpy(), captions, "Training images")


def _classes(heads: Sequence[Head], values: dict[str, Tensor], i: int) -> str:
    words = " ".join(head.classes[values[head.name][i]] for head in heads).split()
    middle = (len(words) + 1) // 2
    return " ".join(words) if len(words) < 3 else " ".join(words[:middle]) + "\n" + " ".join(words[middle:])


def _mistakes(data: ImageDataModule, predictions: Predictions) -> plots.Figure:
    """The test images that are wrong, then those whose truth got the lowest probability."""
    split = data.splits["test"]
    predicted, targets, truth = predictions.predicted, predictions.targets, predictions.truth_probability
    wrong = ~predictions.correct().all(dim=0)
    rows = (truth - wrong.float()).argsort(stable=True)[:SHOWN]
    captions = []
    for row in rows.tolist():
        if wrong[row]:
            said = [h for h in data.heads if predicted[h.name][row] != targets[h.name][row]]
            lines = [
                f"{h.name}: {h.classes[targets[h.name][row]]}, said {h.classes[predicted[h.name][row]]}"
                if len(data.heads) > 1 or not h.parts
                else f"{h.classes[targets[h.name][row]]}\nsaid {h.classes[predicted[h.name][row]]}"
                for h in said
            ]
            captions.append("\n".join(lines))
        else:
            captions.append(f"{_classes(data.heads, targets, row)}\n{percent(truth[row].item())} sure")
    title = f"{int(wrong.sum()):,} of {len(wrong):,} test images wrong"
    return plots.images(split.images(rows).numpy(), captions, title, marked=wrong[rows].tolist())


def _curves(rows: list[Row], heads: Sequence[Head]) -> plots.Figure:
    def lines(what: str, whole: str) -> dict[str, dict[str, list[float]]]:
        keys = {whole: what} if len(heads) > 1 else {}
        keys |= {head.name: f"{head.name}/{what}" for head in heads}
        stages = [stage for stage in ("train", "val") if any(f"{stage}/loss" in row for row in rows)]
        return {
            name: {stage: [row.get(f"{stage}/{key}", math.nan) for row in rows] for stage in stages}
            for name, key in keys.items()
        }

    rates = [row["lr"] for row in rows]
    return plots.curves(lines("loss", "weighted sum"), lines("acc", "all heads right"), rates)


def _f_scores(heads: Sequence[Head], values: Scores) -> plots.Figure:
    scores = {head.name: values[head.name]["class_f1"].cpu().numpy() for head in heads}
    if len(heads) == 1 and heads[0].parts:
        head = heads[0]
        return plots.grouped_f_scores(scores[head.name], head.name, [(p.name, p.classes) for p in head.parts])
    return plots.f_scores(scores, {head.name: head.classes for head in heads})
