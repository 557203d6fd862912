"""What an explanation shows: its pictures, and the words beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cnnlab import plots
from cnnlab.explain.attribution import Attribution
from cnnlab.explain.heatmap_viewer import Maps
from cnnlab.explain.method_names import method_title
from cnnlab.log import percent
from cnnlab.models.heads import Head

LIKELY = 4  # classes of a head whose probabilities are shown


def answers(
    heads: Sequence[Head], i: int, shares: Mapping[str, Tensor], truth: Mapping[str, Tensor] | None
) -> list[dict[str, Any]]:
    """What each head answers to image `i`, of `shares` {head: probabilities float32 (N, classes)}: "head", "said",
    "truth" (None where it is not known), and "bars", the likeliest classes, their probabilities, and these in words."""
    found = []
    for head in heads:
        own = shares[head.name][i].double()
        likely = own.argsort(descending=True, stable=True)[:LIKELY]
        bars = [(head.classes[k], own[k].item()) for k in likely.tolist()]
        if len(head.classes) > LIKELY:
            bars.append((f"{len(head.classes) - LIKELY} others", 1 - float(own[likely].sum().clamp(max=1))))
        true = None if truth is None else head.classes[truth[head.name][i]]
        said = head.classes[int(own.argmax())]
        found.append(
            {
                "head": head.name,
                "said": said,
                "truth": true,
                "bars": [(name, share, percent(share)) for name, share in bars],
            }
        )
    return found


def heatmap_figure(
    image: plots.Array, i: int, heads: Sequence[Head], shares: Mapping[str, Tensor], maps: Maps
) -> plots.Figure:
    """Image `i`, uint8 (C, H, W), of all: for each method and kind of target a row of heatmaps and one of overlays, a
    column a head; the two rows are one where there are so few heads that they fit. `shares` are {head: probabilities
    float32 (N, classes)}."""
    blank = np.full((3, *image.shape[1:]), 255, np.uint8)
    rows = [("heatmap", "overlay")] if len(heads) < 3 else [("heatmap",), ("overlay",)]
    tiles, captions = [], []
    for (method, word), by_head in maps.items():
        for row in rows:
            first = "heatmap" in row
            tiles.append(np.broadcast_to(image, blank.shape) if first else blank)
            captions.append(f"{method_title(method)}:\nevidence for {word}" if first else "")
            for head in heads:
                for kind in row:
                    known = by_head.get(head.name)  # else this head has no such target
                    tile, caption = (blank, "") if known is None else _tile(kind, image, known, i, head, shares)
                    tiles.append(tile)
                    captions.append(caption)
    warned = dict.fromkeys(name for (name, _), found in maps.items() if any(one.warnings for one in found.values()))
    title = "\n".join(
        [
            "Colours are relative to the largest value of each map, which stands above it",
            *(f"Do not trust {method_title(name)}: its sum misses the score difference" for name in warned),
        ]
    )
    columns = 1 + len(heads) * len(rows[0])
    return plots.images(np.stack(tiles), captions, title, columns=columns, picture_width=1.7)


def _tile(
    kind: str, image: plots.Array, found: Attribution, i: int, head: Head, shares: Mapping[str, Tensor]
) -> tuple[plots.Array, str]:
    values, target = found.maps[i].numpy(), int(found.targets[i])
    if kind == "overlay":
        return plots.overlay(image, values), "over the image"
    most = float(np.abs(values).max())
    answer = f"{head.name}: {head.classes[target]} ({percent(shares[head.name][i, target].item())})"
    return plots.heat(values), f"{answer}\n{f'largest {most:.3g}' if most else 'zero everywhere'}"


def kernels_figure(name: str, weights: Tensor) -> plots.Figure:
    """The learned kernels (filters, C, k, k) of the first layer; mid-grey is 0."""
    most = weights.abs().max().clamp(min=1e-12)
    title = f"{name}: the learned kernels (mid-grey is 0, black and white are ±{most:.3g})"
    pixels = (weights / most + 1) * 127.5
    return plots.small_images(pixels.numpy(), [str(k) for k in range(len(weights))], title)
