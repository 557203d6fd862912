"""What the viewer of heatmaps on an explanation's page is given: images, maps and true pixels as numbers, drawn by its
script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab import plots
from cnnlab.explain.attribution import Attribution
from cnnlab.explain.attribution_metrics import rank_accuracy, sobel
from cnnlab.explain.inputs import Inputs
from cnnlab.explain.method_names import method_title
from cnnlab.models.heads import Head

Maps = Mapping[tuple[str, str], Mapping[str, Attribution]]  # {(method, target's word): {head: its evidence}}
EDGES = "an edge map"


def ranks(maps: Maps, images: Tensor, truths: Mapping[str, Tensor]) -> dict[tuple[str, str, str], Tensor]:
    """{(method, target's word, head): rank accuracy float64 (N,)} of all maps whose true pixels, bool (N, H, W) by
    head, are known; the method is also `EDGES`, the Sobel edges of the image."""
    found = {}
    for head, mask in truths.items():
        edges = rank_accuracy(sobel(images), mask)
        for (method, word), by_head in maps.items():
            if head in by_head:
                found[method, word, head] = rank_accuracy(by_head[head].maps, mask)
                found[EDGES, word, head] = edges
    return found


def viewer(
    inputs: Inputs, heads: Sequence[Head], probabilities: Mapping[str, Tensor], maps: Maps, truths: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Everything that the script draws, for JSON: numbers as base64 of bytes, row by row."""
    pixels = in_colour((inputs.images * 255).round().to(torch.uint8))
    height, width = pixels.shape[2:]
    placed = ranks(maps, inputs.images, truths)
    shown = []
    for (method, word), by_head in maps.items():
        for head, found in by_head.items():
            shares = probabilities[head].gather(1, found.targets[:, None])[:, 0]
            known = {key: placed.get((name, word, head)) for key, name in (("rank", method), ("edges", EDGES))}
            shown.append(
                {
                    "method": method_title(method),
                    "target": word,
                    "head": head,
                    "classes": [(found.classes or [])[k] for k in found.targets.tolist()],
                    "shares": shares.tolist(),
                    "most": found.maps.abs().amax(dim=(1, 2)).tolist(),
                    "values": [as_base64(levels(values)) for values in found.maps],
                    "signed": bool((found.maps < 0).any()),
                    **{key: None if value is None else _or_none(value) for key, value in known.items()},
                }
            )
    answers = {head.name: probabilities[head.name].argmax(dim=1) for head in heads}
    return {
        "size": [height, width],
        "heads": [head.name for head in heads],
        "images": [as_base64(image) for image in pixels.permute(0, 2, 3, 1)],
        "names": inputs.names,
        "words": [
            " ".join(
                [inputs.names[i], *(head.classes[k] for head in heads for k in _classes_of(inputs, answers, head, i))]
            )
            for i in range(len(inputs))
        ],
        "wrong": [
            {} if inputs.truth is None else {
                head.name: head.classes[inputs.truth[head.name][i]]
                for head in heads if inputs.truth[head.name][i] != answers[head.name][i]
            }
            for i in range(len(inputs))
        ],
        "maps": shown,
        "truths": {head: [as_base64(mask.to(torch.uint8)) for mask in masks] for head, masks in truths.items()},
        "colours": colour_tables(),
    }  # fmt: skip


def _classes_of(inputs: Inputs, answers: Mapping[str, Tensor], head: Head, i: int) -> list[int]:
    """What a head says to image `i`, and its true class, where it is known."""
    truth = [] if inputs.truth is None else [int(inputs.truth[head.name][i])]
    return [int(answers[head.name][i]), *truth]


def in_colour(pixels: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) as uint8 (N, 3, H, W)."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]


def _or_none(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which knows no NaN."""
    return [None if value != value else value for value in values.tolist()]


def levels(values: Tensor) -> Tensor:
    """Numbers as bytes: 128 is zero, 1 and 255 are minus and plus the largest magnitude."""
    low, high = values.aminmax()
    most = torch.maximum(-low, high).clamp(min=1e-30)
    return (values * (127 / most)).round_().add_(128).to(torch.uint8)


def colour_tables() -> dict[str, str]:
    """The colours of `plots.heat_tables`, for a script."""
    return {name: base64.b64encode(table.tobytes()).decode() for name, table in plots.heat_tables().items()}


def as_base64(values: Tensor) -> str:
    """The bytes of a tensor, row by row, for JSON."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
