"""Planted evidence: a copy of a network that decides by a marker, so that the right pixels are known.

Every image holds two squares: the marker with upright stripes and its lookalike with level stripes, or the lookalike
twice. The last layers of the copy learn to answer class 1 for the first and class 0 for the second. A map that looks
only at the image cannot tell marker and lookalike apart: they have the same pixels, turned by 90°.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.interpret.network import (
    HeadWrapper,
    batch_size,
    default_target_layer,
    frozen_copy,
    last_convolution,
    layer_named,
    path_to_head,
)
from cnnlab.utils.errors import UserError

BATCH, STEPS, CHECK_EVERY, TEST = 32, 600, 20, 64  # of large images half the batch and a third of the steps
PATIENCE = 60  # steps until more layers learn
LEARNED, GOAL = 0.75, 0.98  # shares of new images that change their answer with the marker
FAINT = 3  # what the marker adds elsewhere is at most a third


@dataclass(frozen=True, eq=False)
class Planted:
    """A copy of a head that decides by the marker; `images` (N, C, H, W), each with marker and lookalike;
    their top left `corners` int64 (N, 2, 2) as (row, column); their `size` in pixels; the share of new images of which
    the answer changes with the marker; and the first layer that learned."""

    net: HeadWrapper
    images: Tensor
    corners: Tensor
    size: int
    accuracy: float
    first_layer: str

    @property
    def summary(self) -> str:
        """How well the copy learned, and which layers."""
        return f"{self.accuracy:.0%} of new images follow it; layers from {self.first_layer} on learned it"


def plant(net: HeadWrapper, images: Tensor, count: int, progress: Callable[[str], None] = lambda _: None) -> Planted:
    """Return a copy of a head whose last layers learned to decide by the marker, and up to `count` of `images` with
    marker and lookalike, on which it does.

    The layers are those from the last convolution on; of a vision transformer, from the last LayerNorm with patches.
    If they do not learn it, more layers do: the second half, or all. Raises `UserError` for images that are too small.
    """
    size = max(5, min(images.shape[2:]) // 4)
    if min(images.shape[2:]) < 3 * size:
        raise UserError("the images are too small for a marker")
    copied = HeadWrapper(frozen_copy(net.net), net.head)
    path, layers = path_to_head(copied, images), path_from_last_convolution(copied, images)
    optimizer = _optimizer(copied, layers)
    generator, accuracy = torch.Generator().manual_seed(0), 0.0
    batch, steps = (BATCH, STEPS) if batch_size(images) >= 100 else (BATCH // 2, STEPS // 3)

    def draw(rows: Tensor, marked: Tensor) -> Tensor:
        return paint(images[rows], draw_corners(len(rows), images, size, generator), size, marked)

    for step in range(1, steps + 1):
        marked = torch.arange(batch) % 2 == 0
        drawn = draw(torch.randint(len(images), (batch,), generator=generator), marked)
        with torch.enable_grad():
            scores = copied(drawn)
            if copied.ends_in == "probabilities":
                scores = scores.logit(eps=1e-6)
            # One class against the rest, so that the score of class 1 itself depends on the marker.
            wanted = F.one_hot(marked.long(), scores.shape[1]).to(scores)
            loss = F.binary_cross_entropy_with_logits(scores, wanted)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0:
            rows = torch.randint(len(images), (TEST,), generator=generator)
            corners = draw_corners(TEST, images, size, generator)
            before, accuracy = accuracy, follows(copied, images[rows], corners, size).double().mean().item()
            progress(f"planting a marker: {accuracy:.0%} after {step} steps")
            if min(before, accuracy) >= GOAL:
                break
        if step == PATIENCE and accuracy < LEARNED:
            half = path[len(path) // 2 :]
            layers = half if len(layers) < len(half) else path
            optimizer = _optimizer(copied, layers)
    for parameter in copied.net.parameters():
        parameter.requires_grad_(False)
    corners = draw_corners(count, images, size, torch.Generator().manual_seed(1))
    kept = follows(copied, images[:count], corners, size)
    painted = paint(images[:count], corners, size, torch.ones(count, dtype=torch.bool))
    return Planted(copied, painted[kept], corners[kept.cpu()], size, accuracy, layers[0])


def follows(net: HeadWrapper, images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Return whether the answer for each image is class 1 with the marker and class 0 without it, bool (N,)."""
    answers = []
    for on in (False, True):
        painted = paint(images, corners, size, torch.full((len(images),), on))
        with torch.no_grad():
            answers.append(torch.cat([net(part).argmax(dim=1) for part in painted.split(batch_size(images))]))
    return (answers[0] == 0) & (answers[1] == 1)


def path_from_last_convolution(net: HeadWrapper, images: Tensor) -> list[str]:
    """Return the names of the last layers, which learn the marker first."""
    target = default_target_layer(net, images)
    transformer = isinstance(layer_named(net.net, target), nn.LayerNorm)
    path = path_to_head(net, images)
    return path[path.index(target if transformer else last_convolution(net, images)) :]


def _optimizer(net: HeadWrapper, layers: Sequence[str]) -> torch.optim.Optimizer:
    parameters = list(dict.fromkeys(p for name in layers for p in layer_named(net.net, name).parameters()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    return torch.optim.Adam(parameters, lr=2e-3)


def draw_corners(count: int, images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return top left corners int64 (count, 2, 2) of two squares per image that are half a square apart."""
    limits = torch.tensor([length - size + 1 for length in images.shape[2:]])
    corners = torch.empty(0, 2, 2, dtype=torch.int64)
    while len(corners) < count:
        drawn = (torch.rand(4 * count, 2, 2, generator=generator) * limits).long()
        apart = (drawn[:, 0] - drawn[:, 1]).abs().amax(dim=1) >= size + size // 2
        corners = torch.cat([corners, drawn[apart]])
    return corners[:count]


def without_marker(planted: Planted) -> Tensor:
    """Return the images with the lookalike in both squares."""
    return paint(planted.images, planted.corners, planted.size, torch.zeros(len(planted.images), dtype=torch.bool))


def paint(images: Tensor, corners: Tensor, size: int, marked: Tensor) -> Tensor:
    """Return images (N, C, H, W) with the lookalike in both squares, or the marker in the first where `marked` bool
    (N,). Stripes have the lowest and the highest value of each channel."""
    low, high = images.amin(dim=(0, 2, 3), keepdim=True)[0], images.amax(dim=(0, 2, 3), keepdim=True)[0]
    upright = ((torch.arange(size) // round(size / 4)) % 2 == 0).to(images).expand(size, size)
    painted = images.clone()
    for image, corners_of_image, on in zip(painted, corners.tolist(), marked.tolist(), strict=True):
        for place, (y, x) in enumerate(corners_of_image):
            stripes = upright if on and place == 0 else upright.T
            image[:, y : y + size, x : x + size] = low + (high - low) * stripes
    return painted


def marker_and_lookalike(maps: Tensor, planted: Planted) -> tuple[Tensor, Tensor]:
    """Return the sums of maps (N, H, W) on the marker and on the lookalike, float64 (N,) each."""
    marker, lookalike = (maps.double().masked_fill(~squares(planted, place), 0).sum(dim=(1, 2)) for place in (0, 1))
    return marker, lookalike


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """Return (a - b) / (|a| + |b|) in [-1, 1], 0 where both are 0."""
    total = first.abs() + second.abs()
    return (first - second) / total.where(total > 0, 1)


def lowest_half(scores: Tensor, planted: Planted) -> Tensor:
    """Return the half of the scores (N,) with the lowest mean, among the halves whose markers lie far from the middle,
    a midline or a diagonal: near these a zoomed, mirrored or transposed map is still right."""
    across = torch.tensor(planted.images.shape[2:])
    y, x = ((planted.corners[:, 0] + planted.size / 2) / across - 0.5).double().T
    distances = torch.stack([y.hypot(x), y.abs(), x.abs(), (y - x).abs(), (y + x).abs()])
    halves = distances.topk((len(scores) + 1) // 2, dim=1).indices
    return min((scores[half] for half in halves), key=lambda part: float(part.mean()))


def squares(planted: Planted, place: int) -> Tensor:
    """Return the pixels bool (N, H, W) of the marker (0) or of the lookalike (1)."""
    inside = []
    for axis in (0, 1):
        first = planted.corners[:, place, axis][:, None]
        pixels = torch.arange(planted.images.shape[2 + axis])[None]
        inside.append((pixels >= first) & (pixels < first + planted.size))
    return inside[0][:, :, None] & inside[1][:, None, :]


def grows_at_marker(growth: Tensor, planted: Planted) -> Tensor:
    """Return 1 where the marker adds evidence in its place only, else 0, float64 (N,).

    `growth` (N, H, W) is what the marker adds to the maps. The square with the most of it lies less than half a square
    from the marker, and no square that is half a square apart has a third as much.
    """
    evidence, away = _evidence_in_squares(growth, planted)
    at_marker, elsewhere = away[0] < planted.size / 2, away[0] >= 1.5 * planted.size
    highest = evidence.amax(dim=(1, 2))
    right = _highest(evidence, at_marker) == highest
    return (right & (highest > 0) & (_highest(evidence, elsewhere) < highest / FAINT)).double()


def brightest_fixed_place(maps: Tensor, planted: Planted) -> Tensor:
    """Return how bright the maps (N, H, W) are in one place that is bright in most of them, relative to the marker, in
    [0, 1], float64 (N,). NaN where marker or lookalike lie there."""
    evidence, away = _evidence_in_squares(maps, planted)
    marker = _highest(evidence, away[0] < planted.size)[:, None, None]
    shares = torch.where(marker > 0, evidence / marker.where(marker > 0, 1), (evidence > 0).double()).clamp(max=1)
    shares = shares.masked_fill(away.amin(dim=0) < planted.size, torch.nan).flatten(1)
    return shares[:, shares.nanmean(dim=0).nan_to_num(0).argmax()]


def _evidence_in_squares(maps: Tensor, planted: Planted) -> tuple[Tensor, Tensor]:
    """Return the mean positive evidence of every square (N, rows, columns) and how far it is from marker and lookalike
    (2, N, rows, columns) in pixels."""
    evidence = F.avg_pool2d(maps.double().clamp(min=0)[:, None], planted.size, 1)[:, 0]
    rows, columns = (torch.arange(length) for length in evidence.shape[1:])
    y, x = planted.corners.permute(2, 1, 0)[..., None, None]
    return evidence, torch.maximum((rows[:, None] - y).abs(), (columns - x).abs())


def _highest(evidence: Tensor, where: Tensor) -> Tensor:
    return evidence.masked_fill(~where, 0).amax(dim=(1, 2))
