"""Heatmaps graded over many images: each head, method, truth and metric, with its interval."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import UserError
from cnnlab.data.splits import Split
from cnnlab.explain.heatmaps import Heatmaps, cells, heatmaps
from cnnlab.explain.probe import untouched
from cnnlab.explain.scores import METRICS, ceiling, contrast, interval, rank_correlation, sobel
from cnnlab.heads import Head
from cnnlab.layers import keras_init

BATCH = 250
BASELINES = ("chance", "random map", "edges (Sobel)", "ceiling of the layer")
Truths = Callable[[Tensor, Head], dict[str, Tensor]]  # (rows, head) -> {truth: bool (B, 28, 28)}


@dataclass(frozen=True)
class Grade:
    """A mean with its 95 % bootstrap interval over `n` images."""

    head: str
    method: str
    truth: str
    metric: str
    predictions: str  # all, correct or wrong
    mean: float
    low: float
    high: float
    n: int

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """Images float32 (N, C, 28, 28) in [0, 1], their numbers int64 (N,) and {head: true class int64 (N,)}."""

    images: Tensor
    rows: Tensor
    targets: dict[str, Tensor]


def sample_of(split: Split, count: int) -> Sample:
    """`count` images, spread evenly over the whole split. Raises `UserError` where it has not so many."""
    if not 1 <= count <= len(split):
        raise UserError(f"{count} images are not to be had: the split holds {len(split)}")
    rows = torch.arange(count) * len(split) // count
    return Sample(split.inputs(rows), rows, split.targets(rows))


def predicted(net: nn.Module, heads: Sequence[Head], images: Tensor) -> dict[str, Tensor]:
    """{head: predicted class int64 (N,)}."""
    with untouched(net), torch.no_grad():
        parts = [net(batch) for batch in images.split(BATCH)]
    return {head.name: torch.cat([head.predict(part[head.name]) for part in parts]) for head in heads}


def maps_of(net: nn.Module, head: Head, method: str, images: Tensor, targets: Tensor) -> Heatmaps:
    """`heatmaps` batch by batch."""
    pairs = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    found = [heatmaps(net, head, method, batch, target) for batch, target in pairs]
    coarse = None if found[0].coarse is None else torch.cat([part.coarse for part in found])  # type: ignore[misc]
    return Heatmaps(torch.cat([part.maps for part in found]), found[0].layer, coarse)


def grade(
    net: nn.Module,
    heads: Sequence[Head],
    methods: Sequence[str],
    sample: Sample,
    truths: Truths,
    tell: Callable[[str], None],
) -> list[Grade]:
    """Grades of all heads, methods and baselines against each truth, and the two sanity checks. The maps are
    those for the predicted class."""
    said = predicted(net, heads, sample.images)
    edges = sobel(sample.images)
    noise = torch.rand(edges.shape, generator=torch.Generator().manual_seed(0))
    scrambled = randomised(net)
    grades: list[Grade] = []
    masks = {head.name: truths(sample.rows, head) for head in heads}
    for method in methods:
        maps: dict[str, Tensor] = {}
        for head in heads:
            tell(f"{head.name}: {method.replace('_', ' ')}")
            target = said[head.name]
            maps[head.name] = maps_of(net, head, method, sample.images, target).maps
            right = target == sample.targets[head.name]
            grades += _against(masks[head.name], head.name, method, maps[head.name], right)
            other = maps_of(scrambled, head, method, sample.images, target).maps
            alike = interval(rank_correlation(maps[head.name], other))
            grades.append(Grade(head.name, method, "randomised weights", "rank correlation", "all", *alike))
        for first, second in combinations(heads, 2):
            differ = contrast(
                maps[first.name], maps[second.name],
                masks[first.name]["counterfactual"], masks[second.name]["counterfactual"],
            )  # fmt: skip
            names = f"{first.name} - {second.name}"
            grades.append(Grade(names, method, "head contrast", "auc", "all", *interval(differ)))
    for head in heads:
        right = said[head.name] == sample.targets[head.name]
        one = maps_of(net, head, "grad_cam", sample.images[:1], said[head.name][:1])
        assert one.layer is not None
        assert one.coarse is not None
        grid = cells(net, head, one.layer, one.coarse.shape[-1])
        grades += _against(masks[head.name], head.name, "random map", noise, right)
        grades += _against(masks[head.name], head.name, "edges (Sobel)", edges, right)
        for truth, mask in masks[head.name].items():
            grades += _against({truth: mask}, head.name, "ceiling of the layer", ceiling(mask, grid), right)
            share = mask.flatten(1).double().mean(dim=1)
            for metric in METRICS:
                chance = torch.full_like(share, 0.5) if metric == "auc" else share
                grades.append(Grade(head.name, "chance", truth, metric, "all", *interval(chance)))
    return grades


def _against(masks: dict[str, Tensor], head: str, method: str, maps: Tensor, right: Tensor) -> list[Grade]:
    grades = []
    for truth, mask in masks.items():
        for name, metric in METRICS.items():
            scores = metric(maps, mask)
            for predictions, kept in (("all", slice(None)), ("correct", right), ("wrong", ~right)):
                grades.append(Grade(head, method, truth, name, predictions, *interval(scores[kept])))
    return grades


class Watch:
    """Grades Grad-CAM on a fixed sample while a network is trained: when does it begin to look at the right
    place? {"evidence_<head>": mean rank accuracy against the counterfactual truth}."""

    def __init__(self, heads: Sequence[Head], sample: Sample, truths: Truths) -> None:
        self.heads, self.images = heads, sample.images
        self.masks = {head.name: truths(sample.rows, head)["counterfactual"] for head in heads}

    def __call__(self, net: nn.Module) -> dict[str, float]:
        said = predicted(net, self.heads, self.images)
        found = {}
        for head in self.heads:
            maps = maps_of(net, head, "grad_cam", self.images, said[head.name]).maps
            found[f"evidence_{head.name}"] = interval(METRICS["rank"](maps, self.masks[head.name]))[0]
        return found


def randomised(net: nn.Module) -> nn.Module:
    """A copy of the network with new random weights (Adebayo et al. 2018: an explanation that stays the same
    does not explain the network)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = copy.deepcopy(net)
        for module in other.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        keras_init(other)
    return other


def insertion_deletion(
    net: nn.Module, head: Head, method: str, sample: Sample, steps: int = 28
) -> dict[str, Tensor]:
    """{"insertion" and "deletion": float (N, steps + 1)}: the probability of the predicted class as pixels
    are put onto black, or taken from the image, from the highest of the map to the lowest (Petsiuk et al.
    2018)."""
    target = predicted(net, [head], sample.images)[head.name]
    maps = maps_of(net, head, method, sample.images, target).maps.flatten(1)
    places = torch.empty_like(maps, dtype=torch.int64)
    order = maps.argsort(dim=1, descending=True, stable=True)
    places.scatter_(1, order, torch.arange(maps.shape[1]).expand_as(order))
    places = places.view(len(maps), 1, *sample.images.shape[2:])
    curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
    for step in range(steps + 1):
        first = places < round(step * maps.shape[1] / steps)
        for name, kept in (("insertion", first), ("deletion", ~first)):
            images = sample.images * kept
            with untouched(net), torch.no_grad():
                logits = torch.cat([net(batch)[head.name] for batch in images.split(BATCH)])
            shares = head.probabilities(logits)
            curves[name].append(shares.gather(1, target[:, None])[:, 0])
    return {name: torch.stack(values, dim=1) for name, values in curves.items()}
