"""What an explanation shows: its pictures, and the words beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cnnlab import plots
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


def kernels_figure(name: str, weights: Tensor) -> plots.Figure:
    """The learned kernels (filters, C, k, k) of the first layer; mid-grey is 0."""
    most = weights.abs().max().clamp(min=1e-12)
    title = f"{name}: the learned kernels (mid-grey is 0, black and white are ±{most:.3g})"
    pixels = (weights / most + 1) * 127.5
    return plots.small_images(pixels.numpy(), [str(k) for k in range(len(weights))], title)
