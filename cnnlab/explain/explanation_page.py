"""What an explanation shows: its pictures, and the words beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab import plots
from cnnlab.explain.activation_maximization import Maximization
from cnnlab.explain.activations import Activations
from cnnlab.explain.inputs import Inputs
from cnnlab.html import percent
from cnnlab.models.heads import Head

LIKELY = 4  # classes of a head whose probabilities are shown

# {(method, kind of target): {head: (class of each image int64 (N,), maps float32 (N, H, W))}}
Heatmaps = Mapping[tuple[str, str], Mapping[str, tuple[Tensor, Tensor]]]


def answers(
    heads: Sequence[Head], i: int, shares: Mapping[str, Tensor], truth: Mapping[str, Tensor] | None
) -> list[dict[str, Any]]:
    """What each head answers to image `i`, of `shares` {head: probabilities float32 (N, classes)}: "head", "said",
    "truth" (None where it is not known), and "bars", the most likely classes with their probabilities."""
    found = []
    for head in heads:
        own = shares[head.name][i]
        likely = own.argsort(descending=True, stable=True)[:LIKELY]
        bars = [(head.classes[k], own[k].item()) for k in likely.tolist()]
        if len(head.classes) > LIKELY:
            bars.append((f"{len(head.classes) - LIKELY} others", 1 - float(own[likely].sum().clamp(max=1))))
        true = None if truth is None else head.classes[truth[head.name][i]]
        found.append({"head": head.name, "said": head.classes[int(own.argmax())], "truth": true, "bars": bars})
    return found


def heatmap_figure(
    image: plots.Array, i: int, heads: Sequence[Head], shares: Mapping[str, Tensor], heatmaps: Heatmaps
) -> plots.Figure:
    """Image `i`, uint8 (C, H, W), of all: for each method and kind of target a row of heatmaps and one of overlays, a
    column a head; the two rows are one where there are so few heads that they fit. `shares` are {head: probabilities
    float32 (N, classes)}."""
    tiles, captions = [], []
    kinds = ("heatmap", "overlay")
    rows = [kinds] if len(heads) < 3 else [(kind,) for kind in kinds]
    for (method, target_name), by_head in heatmaps.items():
        for row in rows:
            tiles.append(np.broadcast_to(image, (3, *image.shape[1:])))
            captions.append(f"{method.replace('_', ' ')}, {target_name}:\n{' and '.join(row)}")
            for head in heads:
                for kind in row:
                    tile, caption = np.full((3, *image.shape[1:]), 255, np.uint8), ""
                    if head.name in by_head:  # else this head has no such target
                        targets, maps = by_head[head.name]
                        share = shares[head.name][i, targets[i]].item()
                        tile, caption = _tile(
                            kind, image, maps[i].numpy(), f"{head.name}: {head.classes[targets[i]]}", share
                        )
                    tiles.append(tile)
                    captions.append(caption)
    title = "Brightness is relative to the largest value of each map, which stands above it"
    columns = 1 + len(heads) * len(rows[0])
    return plots.images(np.stack(tiles), captions, title, columns=columns, picture_width=1.7)


def _tile(kind: str, image: plots.Array, values: plots.Array, answer: str, share: float) -> tuple[plots.Array, str]:
    most = float(np.abs(values).max())
    scale = f"largest {most:.3g}" if most else "zero everywhere"
    return plots.heat(values) if kind == "heatmap" else plots.overlay(
        image, values
    ), f"{answer} ({percent(share)})\n{scale}"


def layer_text(answer: Activations, shown: int, sample: int) -> str:
    """A layer in a sentence: its size, how many channels are `shown`, and what became of them on `sample` images."""
    count = len(answer.dead)
    text = f"{count} channels of {' x '.join(map(str, answer.maps.shape[2:]))}"
    if shown < count:
        text += f"; shown are the {shown} with the highest mean activation over these images"
    return text + (
        f". On {sample} test images {int(answer.dead.sum())} channels are dead (the same everywhere, marked "
        f"'dead') and {int(answer.saturated.sum())} saturated (a ReLU above 0 everywhere, marked 'on')."
    )


def layer_figure(answer: Activations, channels: Tensor, images: Inputs) -> plots.Figure:
    """The activations of `channels` int64 (K,) of one layer, a row an image."""
    marks = {int(k): "dead" for k in answer.dead.nonzero()} | {int(k): "on" for k in answer.saturated.nonzero()}
    return plots.mosaics(
        images.images.numpy(),
        answer.maps[:, channels].numpy(),
        channels.tolist(),
        marks,
        images.names,
        f"{answer.layer}: dark is the lowest, light the highest value of each row",
    )


def filters_figure(name: str, captions: Sequence[str], found: Maximization, bounded: bool) -> plots.Figure:
    """The inputs that maximise the channels of a layer or the classes of a head."""
    pixels = found.images
    if not bounded:
        low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    words = [
        f"{caption}: dead, no slope" if dead else f"{caption}: {value:.3g}"
        for caption, dead, value in zip(captions, found.dead.tolist(), found.activation.tolist(), strict=True)
    ]
    scale = "pixels in [0, 1] as they are" if bounded else "each stretched from its lowest to its highest pixel"
    title = f"{name}: the input that maximises each, with the value it reached ({scale})"
    return _small_images(pixels * 255, words, title, found.dead.tolist())


def kernels_figure(name: str, weights: Tensor) -> plots.Figure:
    """The learned kernels (filters, C, k, k) of the first layer; mid-grey is 0."""
    most = weights.abs().max().clamp(min=1e-12)
    title = f"{name}: the learned kernels (mid-grey is 0, black and white are ±{most:.3g})"
    return _small_images((weights / most + 1) * 127.5, [str(k) for k in range(len(weights))], title)


def _small_images(pixels: Tensor, captions: Sequence[str], title: str, marked: Sequence[bool] = ()) -> plots.Figure:
    levels = pixels.round().to(torch.uint8).numpy()
    return plots.images(levels, captions, title, marked=marked, columns=12, picture_width=0.95)
