"""Predictions for images from outside, with warnings for images that the network cannot know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.data.image_io import WHY_EMPTY
from cnnlab.interpret.inputs import Inputs
from cnnlab.interpret.network import predict_logits
from cnnlab.interpret.ood import OODDetector
from cnnlab.models.heads import Head
from cnnlab.plots.result import Result
from cnnlab.utils.console import as_table, percent
from cnnlab.utils.errors import UserError, did_you_mean

DRAWN = 48  # images in a picture


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Result):
    """The predictions for N images: `probabilities` {head: float32 (N, classes)} with rows that sum to 1; the `inputs`;
    and `ood` float32 (N,): above 1 an image is less like the training images than 99.9 % of validation images (None
    where the run has no detector)."""

    heads: Sequence[Head]
    probabilities: dict[str, Tensor]
    inputs: Inputs
    ood: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs.images)

    def __getitem__(self, head: str) -> list[str]:
        """Return a head's predicted class names. Raises `UserError` for an unknown head."""
        for known in self.heads:
            if known.name == head:
                return [known.classes[k] for k in self.probabilities[head].argmax(dim=1).tolist()]
        raise UserError(f"there is no head '{head}'{did_you_mean(head, self.probabilities)}")

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per image: its name, each head's answer and probability, `ood` and the notes."""
        columns: dict[str, list[Any]] = {"image": list(self.inputs.names)}
        for name, shares in self.probabilities.items():
            columns |= {name: self[name], f"{name}_probability": shares.amax(dim=1).tolist()}
        if self.ood is not None:
            columns["ood"] = [round(score, 3) for score in self.ood.tolist()]
        columns["notes"] = ["; ".join(notes) for notes in self.inputs.notes] or [""] * len(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def answers(self) -> list[dict[str, Any]]:
        """Return everything for JSON: each image's name, notes, `ood`, and every head's probabilities by class."""
        answers = []
        for i, row in enumerate(self.rows()):
            heads = {
                head.name: {
                    "answer": row[head.name],
                    "probabilities": dict(zip(head.classes, self.probabilities[head.name][i].tolist(), strict=True)),
                }
                for head in self.heads
            }
            notes = self.inputs.notes[i] if self.inputs.notes else []
            answers.append({"image": row["image"], "heads": heads, "ood": row.get("ood"), "notes": notes})
        return answers

    def warnings(self) -> list[str]:
        """Return a sentence for each image that is empty, or unlike the training images."""
        named = zip(self.inputs.names, image_warnings(self.inputs.images, self.ood, self.inputs.notes), strict=True)
        return [f"{name} {warning}: don't trust the answer" for name, warning in named if warning]

    def __repr__(self) -> str:
        names = list(self.probabilities)
        lines = [["image", *names], *([row["image"], *_answers(row, names)] for row in self.rows())]
        return "\n".join([as_table(lines, left=len(lines[0])), *(f"! {warning}" for warning in self.warnings())])

    def plot(self) -> plots.Figure:
        """Draw the first 48 images with the answers; images with warnings are marked."""
        images = self.inputs.images[:DRAWN]
        warnings = image_warnings(images, self.ood, self.inputs.notes)
        captions = []
        for row, warning in zip(self.rows()[:DRAWN], warnings, strict=True):
            answers = zip(self.probabilities, _answers(row, list(self.probabilities)), strict=True)
            lines = [row["image"][-24:], *(f"{name}: {answer}" for name, answer in answers)]
            if warning:
                far = warning.startswith("is unlike")
                lines.append("unlike the training images" if far else re.split(r"[,;(]", warning)[0])
            captions.append("\n".join(lines))
        pixels = (images * 255).round().to(torch.uint8).numpy()
        return plots.images(pixels, captions, "Predictions", [*map(bool, warnings)], columns=4, picture_width=1.8)

    def arrays(self) -> dict[str, Tensor]:
        ood = {} if self.ood is None else {"ood": self.ood}
        return {"images": self.inputs.images, **self.probabilities, **ood}

    def metadata(self) -> dict[str, Any]:
        return {"classes": {head.name: list(head.classes) for head in self.heads}, "images": self.inputs.names}


def _answers(row: dict[str, Any], heads: list[str]) -> list[str]:
    return [f"{row[name]} {percent(row[f'{name}_probability'])}" for name in heads]


def is_empty(images: Tensor) -> Tensor:
    """Return which of `images` (N, C, H, W) have equal pixels everywhere, bool (N,)."""
    return (images == images[:, :, :1, :1]).flatten(1).all(dim=1)


def image_warnings(images: Tensor, ood: Tensor | None, notes: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return for each of `images` (N, C, H, W) why its answers mean little, or "": it is empty, was
    drawn in black or grey (see its notes), or its out-of-distribution score in `ood` (N,) is above 1."""
    scores = [0.0] * len(images) if ood is None else ood[: len(images)].tolist()
    warnings = []
    for i, (empty, score) in enumerate(zip(is_empty(images).tolist(), scores, strict=True)):
        reasons = [note for note in (notes[i] if notes else ()) if note.startswith(WHY_EMPTY)]
        if empty or reasons:
            warnings.append((reasons or ["is empty, all its pixels are equal"])[0])
        else:
            far = f"is unlike the images that the network was trained on ({score:.2f} times the usual limit)"
            warnings.append(far if score > 1 else "")
    return warnings


def predict(net: nn.Module, heads: Sequence[Head], inputs: Inputs, detector: OODDetector | None = None) -> Prediction:
    """Return the predictions of a network that answers {head: logits}."""
    logits = predict_logits(net, [head.name for head in heads], inputs.images)
    probabilities = {head.name: head.probabilities(logits[head.name]) for head in heads}
    return Prediction(heads, probabilities, inputs, None if detector is None else detector.scores(net, inputs.images))
