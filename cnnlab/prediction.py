"""What a network says to images from outside: its answers, how sure it is, and whether the image is one of the kind
that it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cnnlab.cli import as_list
from cnnlab.data.outside import WHY_EMPTY, image_files
from cnnlab.errors import UserError, did_you_mean
from cnnlab.explain.inputs import Inputs, from_outside
from cnnlab.explain.network import frozen_copy
from cnnlab.explain.ood import OODDetector
from cnnlab.io import new_folder, to_csv, write_atomically
from cnnlab.log import as_table, echo, percent
from cnnlab.models.heads import Head
from cnnlab.provenance import versions
from cnnlab.result import Result
from cnnlab.runs import open_run

if TYPE_CHECKING:
    from cnnlab.plots import Figure

BATCH = 250
DRAWN = 48  # images in a picture


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Result):
    """What the heads say to N images: `probabilities` {head: float32 (N, classes)}, rows sum to 1; `inputs`, the images
    as the network got them, with their names; `ood` float32 (N,), how unlike the training images each is, above 1 less
    like them than 99.9 % of validation images are (None where the run kept nothing of them)."""

    heads: Sequence[Head]
    probabilities: dict[str, Tensor]
    inputs: Inputs
    ood: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs.images)

    def __getitem__(self, head: str) -> list[str]:
        """A head's answer to each image, names of classes. Raises `UserError` where there is no such head."""
        for known in self.heads:
            if known.name == head:
                return [known.classes[k] for k in self.probabilities[head].argmax(dim=1).tolist()]
        raise UserError(f"there is no head '{head}'{did_you_mean(head, self.probabilities)}")

    def rows(self) -> list[dict[str, Any]]:
        """An image a row: its name, every head's answer and the probability of it, `ood` and the notes."""
        columns: dict[str, list[Any]] = {"image": list(self.inputs.names)}
        for name, shares in self.probabilities.items():
            columns |= {name: self[name], f"{name}_probability": shares.amax(dim=1).tolist()}
        if self.ood is not None:
            columns["ood"] = [round(score, 3) for score in self.ood.tolist()]
        columns["notes"] = ["; ".join(notes) for notes in self.inputs.notes] or [""] * len(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def answers(self) -> list[dict[str, Any]]:
        """Everything, for JSON: of each image its name, notes, `ood`, and every head's probabilities by class."""
        found = []
        for i, row in enumerate(self.rows()):
            heads = {
                head.name: {
                    "answer": row[head.name],
                    "probabilities": dict(zip(head.classes, self.probabilities[head.name][i].tolist(), strict=True)),
                }
                for head in self.heads
            }
            notes = self.inputs.notes[i] if self.inputs.notes else []
            found.append({"image": row["image"], "heads": heads, "ood": row.get("ood"), "notes": notes})
        return found

    def warnings(self) -> list[str]:
        """A sentence for each image that is empty, or unlike the training images."""
        named = zip(self.inputs.names, doubts(self.inputs.images, self.ood, self.inputs.notes), strict=True)
        return [f"{name} {doubt}: the answer means little" for name, doubt in named if doubt]

    def __repr__(self) -> str:
        names = list(self.probabilities)
        lines = [["image", *names], *([row["image"], *_said(row, names)] for row in self.rows())]
        return "\n".join([as_table(lines, left=len(lines[0])), *(f"! {warning}" for warning in self.warnings())])

    def plot(self) -> Figure:
        """The first 48 images as the network got them, with the answers; those that are empty, or unlike the
        training images, are marked."""
        from cnnlab import plots

        images = self.inputs.images[:DRAWN]
        doubtful = doubts(images, self.ood, self.inputs.notes)
        captions = []
        for row, doubt in zip(self.rows()[:DRAWN], doubtful, strict=True):
            said = zip(self.probabilities, _said(row, list(self.probabilities)), strict=True)
            lines = [row["image"][-24:], *(f"{name}: {answer}" for name, answer in said)]
            if doubt:
                far = doubt.startswith("is unlike")
                lines.append("unlike the training images" if far else re.split(r"[,;(]", doubt)[0])
            captions.append("\n".join(lines))
        pixels = (images * 255).round().to(torch.uint8).numpy()
        return plots.images(
            pixels, captions, "What the network says", [*map(bool, doubtful)], columns=4, picture_width=1.8
        )

    def arrays(self) -> dict[str, Tensor]:
        ood = {} if self.ood is None else {"ood": self.ood}
        return {"images": self.inputs.images, **self.probabilities, **ood}

    def facts(self) -> dict[str, Any]:
        return {"classes": {head.name: list(head.classes) for head in self.heads}, "images": self.inputs.names}


def _said(row: dict[str, Any], heads: list[str]) -> list[str]:
    """Every head's answer in a row of the table, with its probability."""
    return [f"{row[name]} {percent(row[f'{name}_probability'])}" for name in heads]


def is_empty(images: Tensor) -> Tensor:
    """Of which of `images` (N, C, H, W) all pixels are alike, bool (N,)."""
    return (images == images[:, :, :1, :1]).flatten(1).all(dim=1)


def doubts(images: Tensor, ood: Tensor | None, notes: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return why the answers to each of `images` (N, C, H, W) mean little, a clause, "" where nothing is wrong. An
    image is empty, drawn in black or grey (as the `notes` on each image say), or its out-of-distribution score, of
    `ood` (N,) or more, is above 1."""
    scores = [0.0] * len(images) if ood is None else ood[: len(images)].tolist()
    far = "is unlike the images that the network was trained on ({:.1f} times as far from them as is usual)"
    found = []
    for i, (nothing, score) in enumerate(zip(is_empty(images).tolist(), scores, strict=True)):
        reasons = [note for note in (notes[i] if notes else ()) if note.startswith(WHY_EMPTY)]
        if nothing or reasons:
            found.append((reasons or ["is empty, all its pixels are alike"])[0])
        else:
            found.append(far.format(score) if score > 1 else "")
    return found


def predict(net: nn.Module, heads: Sequence[Head], inputs: Inputs, detector: OODDetector | None = None) -> Prediction:
    """What a network, which answers {head: logits}, says to images."""
    net = frozen_copy(net)
    with torch.no_grad():
        parts = [net(batch) for batch in inputs.images.split(BATCH)]
    shares = {head.name: torch.cat([head.probabilities(part[head.name]) for part in parts]) for head in heads}
    return Prediction(heads, shares, inputs, None if detector is None else detector.scores(net, inputs.images))


def predict_run(cfg: DictConfig) -> Path:
    """Read and answer the images that `cfg` (conf/predict.yaml) names; returns the folder with `predictions.csv` and
    `predictions.json`. Raises `UserError` where no image can be read, before anything is written."""
    run = open_run(cfg.run)
    if cfg.image is None:
        raise UserError("name what to read: image=<file, folder or pattern>, or a list of these")
    unreadable: dict[str, str] = {}
    files = image_files(as_list(cfg.image))
    inputs = from_outside(files, run.task.image_shape, run.task.expects, unreadable)
    prediction = run.predict(inputs)
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "predict")
    write_atomically(folder / "predictions.csv", to_csv(prediction.rows()))
    facts = {"run": str(run.path), "title": run.title, "versions": versions()}
    content = {**facts, "images": prediction.answers(), "unreadable": unreadable}
    write_atomically(folder / "predictions.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    echo(str(prediction))
    for why in unreadable.values():
        echo(f"! {why}")
    echo(f"table  {folder / 'predictions.csv'}")
    return folder
