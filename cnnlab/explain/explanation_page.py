"""An explanation's pictures and its page, from what the methods found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab import plots
from cnnlab.explain.activation_maximization import AscentConfig, Maximization
from cnnlab.explain.activations import Activations
from cnnlab.explain.attribution import Attribution
from cnnlab.explain.inputs import Inputs
from cnnlab.html import percent, render
from cnnlab.io import write_atomically
from cnnlab.models.heads import Head

LIKELY = 4  # classes of a head whose probabilities are shown


@dataclass(frozen=True)
class MethodResult:
    """The heatmaps of all images for one head, one kind of target and one method."""

    head: Head
    target_name: str
    target: Tensor
    method: str
    result: Attribution


@dataclass(frozen=True)
class LayerPage:
    """What the page shows of a layer: its picture, a sentence, and which channels are drawn."""

    name: str
    picture: Path
    text: str
    channels: Tensor


@dataclass(frozen=True)
class InputPage:
    """What the page shows of an image."""

    name: str
    notes: list[str]
    answers: list[dict[str, Any]]
    picture: Path


def inputs(
    folder: Path,
    images: Inputs,
    every: tuple[Head, ...],
    heads: list[Head],
    probabilities: dict[str, Tensor],
    results: list[MethodResult],
) -> list[InputPage]:
    """A picture of heatmaps for each image, with what every head answers."""
    pages = []
    for i, name in enumerate(images.names):
        answers = []
        for head in every:
            shares = probabilities[head.name][i]
            truth = None if images.truth is None else head.classes[int(images.truth[head.name][i])]
            said = head.classes[int(shares.argmax())]
            likely = shares.argsort(descending=True, stable=True)[:LIKELY]
            bars = [(head.classes[k], shares[k].item()) for k in likely.tolist()]
            if len(head.classes) > LIKELY:
                bars.append((f"{len(head.classes) - LIKELY} others", 1 - float(shares[likely].sum().clamp(max=1))))
            answers.append({"head": head.name, "said": said, "truth": truth, "bars": bars})
        path = folder / f"heatmaps_{i + 1}.png"
        plots.save(_heat_figure(images.images[i].numpy(), i, heads, probabilities, results), path)
        pages.append(InputPage(name, images.notes[i] if images.notes else [], answers, path))
    return pages


def _heat_figure(
    image: plots.Array,
    i: int,
    heads: list[Head],
    probabilities: dict[str, Tensor],
    results: list[MethodResult],
) -> plots.Figure:
    """For each method and target a row of heatmaps and one of overlays, a column a head; the two rows are
    one where there are so few heads that they fit."""
    tiles, captions = [], []
    kinds = ("heatmap", "overlay")
    rows = [kinds] if len(heads) < 3 else [(kind,) for kind in kinds]
    for method, target_name in dict.fromkeys((found.method, found.target_name) for found in results):
        own = {
            found.head.name: found for found in results if (found.method, found.target_name) == (method, target_name)
        }
        for row in rows:
            tiles.append(np.broadcast_to(image, (3, *image.shape[1:])))
            captions.append(f"{method.replace('_', ' ')}, {target_name}:\n{' and '.join(row)}")
            for head in heads:
                for kind in row:
                    tile, caption = _tile(kind, image, i, own.get(head.name), probabilities[head.name])
                    tiles.append(tile)
                    captions.append(caption)
    title = "Brightness is relative to the largest value of each map, which stands above it"
    columns = 1 + len(heads) * len(rows[0])
    return plots.images(np.stack(tiles), captions, title, columns=columns, picture_width=1.7)


def _tile(
    kind: str, image: plots.Array, i: int, found: MethodResult | None, probabilities: Tensor
) -> tuple[plots.Array, str]:
    """A heatmap or an overlay with its caption; an empty place where this head has no such target."""
    if found is None:
        return np.full((3, *image.shape[1:]), 255, np.uint8), ""
    values = found.result.maps[i].numpy()
    target = int(found.target[i])
    share = percent(probabilities[i, target].item())
    most = float(np.abs(values).max())
    scale = f"largest {most:.3g}" if most else "zero everywhere"
    tile = plots.heat(values) if kind == "heatmap" else plots.overlay(image, values)
    return tile, f"{found.head.name}: {found.head.classes[target]} ({share})\n{scale}"


def layer(folder: Path, answer: Activations, channels: Tensor, images: Inputs, sample: int) -> LayerPage:
    """The activations of one layer, all images on one picture."""
    marks = {int(k): "dead" for k in answer.dead.nonzero()} | {int(k): "on" for k in answer.saturated.nonzero()}
    count = len(answer.dead)
    text = f"{count} channels of {' x '.join(map(str, answer.maps.shape[2:]))}"
    if len(channels) < count:
        text += f"; shown are the {len(channels)} with the highest mean activation over these images"
    text += (
        f". On {sample} test images {int(answer.dead.sum())} channels are dead (the same everywhere, marked "
        f"'dead') and {int(answer.saturated.sum())} saturated (a ReLU above 0 everywhere, marked 'on')."
    )
    path = folder / f"activations_{answer.layer}.png"
    figure = plots.mosaics(
        images.images.numpy(),
        answer.maps[:, channels].numpy(),
        channels.tolist(),
        marks,
        images.names,
        f"{answer.layer}: dark is the lowest, light the highest value of each row",
    )
    plots.save(figure, path)
    return LayerPage(answer.layer, path, text, channels)


def filters(folder: Path, name: str, captions: list[str], found: Maximization, ascent: AscentConfig) -> Path:
    """The inputs that maximise the channels of a layer or the classes of a head."""
    pixels = found.images
    if not ascent.bounded:
        low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    words = [
        f"{caption}: dead, no slope" if dead else f"{caption}: {value:.3g}"
        for caption, dead, value in zip(captions, found.dead.tolist(), found.activation.tolist(), strict=True)
    ]
    scale = "pixels in [0, 1] as they are" if ascent.bounded else "each stretched from its lowest to its highest pixel"
    figure = plots.images(
        (pixels * 255).round().to(torch.uint8).numpy(),
        words,
        f"{name}: the input that maximises each, with the value it reached ({scale})",
        marked=found.dead.tolist(),
        columns=12,
        picture_width=0.95,
    )
    path = folder / f"filters_{name}.png"
    plots.save(figure, path)
    return path


def kernels(folder: Path, name: str, weights: Tensor) -> Path:
    """The learned kernels (filters, C, k, k) of the first layer; mid-grey is 0."""
    most = weights.abs().max().clamp(min=1e-12)
    pixels = ((weights / most + 1) * 127.5).round().to(torch.uint8).numpy()
    figure = plots.images(
        pixels,
        [str(k) for k in range(len(pixels))],
        f"{name}: the learned kernels (mid-grey is 0, black and white are ±{most:.3g})",
        columns=12,
        picture_width=0.95,
    )
    path = folder / f"kernels_{name}.png"
    plots.save(figure, path)
    return path


def page(
    folder: Path,
    manifest: dict[str, Any],
    shown: list[InputPage],
    layers: list[LayerPage],
    drawn: list[Path],
) -> None:
    """`index.html`, on which everything stands."""
    html = render("explanation.html", manifest=manifest, inputs=shown, layers=layers, filters=drawn)
    write_atomically(folder / "index.html", html)
