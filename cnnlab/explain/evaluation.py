"""Attribution methods evaluated over many images: each head, method, truth and metric, with its interval."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.explain.attribution import BATCH, Method, attribute
from cnnlab.explain.attribution_metrics import (
    METRICS,
    bootstrap_ci,
    evidence_rank_correlation,
    head_contrast,
    layer_upper_bound,
    sobel,
)
from cnnlab.explain.method_names import method_title
from cnnlab.explain.methods.cams import grad_cam
from cnnlab.explain.network import (
    HeadWrapper,
    default_target_layer,
    frozen_copy,
    layers_up_to,
    leaf_modules,
    receptive_fields,
)
from cnnlab.models.heads import Head
from cnnlab.models.layers import keras_init

CHANCE, RANDOM, EDGES, UPPER_BOUND = "chance", "random map", "edges (Sobel)", "upper bound of the layer"
BRIGHTNESS = "image brightness"


def random_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Maps float32 (N, H, W) that know neither the network nor the image."""
    return torch.rand(len(images), *images.shape[2:], generator=torch.Generator().manual_seed(0))


def edge_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Maps float32 (N, H, W) that know the image and not the network: its Sobel edges."""
    return sobel(images)


def brightness_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Maps float32 (N, H, W) that know the image and not the network: the brightest channel of each pixel."""
    return images.amax(dim=1)


WITHOUT_NETWORK: dict[str, Method] = {RANDOM: random_map, EDGES: edge_map}


@dataclass(frozen=True)
class AttributionScore:
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
    """Images float32 (N, C, H, W) in [0, 1], {head: true class int64 (N,)}, and {head: {truth: the true pixels
    bool (N, H, W)}}, empty where nobody knows them."""

    images: Tensor
    targets: dict[str, Tensor]
    truths: dict[str, dict[str, Tensor]]


def predict(net: nn.Module, heads: Sequence[Head], images: Tensor) -> dict[str, Tensor]:
    """{head: predicted class int64 (N,)}."""
    net = frozen_copy(net)
    found = {}
    for head in heads:
        wrapper = HeadWrapper(net, head.name)
        with torch.no_grad():
            found[head.name] = torch.cat([head.predict(wrapper.logits(part)) for part in images.split(BATCH)])
    return found


def evaluate(
    net: nn.Module,
    heads: Sequence[Head],
    methods: Mapping[str, Method],
    sample: Sample,
    progress: Callable[[str], None] = lambda _: None,
    warnings: dict[str, str] | None = None,
) -> list[AttributionScore]:
    """Scores of all heads, methods and baselines against each truth, and the two sanity checks. The maps are
    those for the predicted class. {method: what its maps warn of} is added to `warnings`."""
    predicted = predict(net, heads, sample.images)
    randomised = randomise(net)
    scores: list[AttributionScore] = []
    for name, method in methods.items():
        maps: dict[str, Tensor] = {}
        for head in heads:
            progress(f"{head.name}: {method_title(name)}")
            target = predicted[head.name]
            result = attribute(net, sample.images, target, method, head.name, name=name)
            maps[head.name] = result.maps
            if warnings is not None and result.warnings:
                warnings.setdefault(name, f"{method_title(name)}, {head.name}: {result.warnings[0]}")
            scores += _against_truths(sample, head, name, maps[head.name], target)
            other = attribute(randomised, sample.images, target, method, head.name, name=name).maps
            alike = bootstrap_ci(evidence_rank_correlation(maps[head.name], other))
            scores.append(AttributionScore(head.name, name, "randomised weights", "rank correlation", "all", *alike))
        for first, second in combinations([name for name in maps if "counterfactual" in sample.truths[name]], 2):
            masks = [sample.truths[head]["counterfactual"] for head in (first, second)]
            differ = bootstrap_ci(head_contrast(maps[first], maps[second], *masks))
            scores.append(AttributionScore(f"{first} - {second}", name, "head contrast", "auc", "all", *differ))
    for head in heads:
        scores += _baselines(net, head, sample, predicted[head.name])
    return scores


def _baselines(net: nn.Module, head: Head, sample: Sample, predicted: Tensor) -> list[AttributionScore]:
    """What is reached without any insight, and the best that maps as coarse as Grad-CAM's could."""
    wrapper = HeadWrapper(net, head.name)
    scores: list[AttributionScore] = []
    for name, method in WITHOUT_NETWORK.items():
        maps = method(wrapper, sample.images, predicted)
        assert isinstance(maps, Tensor)
        scores += _against_truths(sample, head, name, maps, predicted)
    for truth, mask in sample.truths[head.name].items():
        best = upper_bound_maps(wrapper, sample.images, mask)
        scores += _against_truths(sample, head, UPPER_BOUND, best, predicted, truth)
        share = mask.flatten(1).double().mean(dim=1)
        for metric in METRICS:
            chance = bootstrap_ci(torch.full_like(share, 0.5) if metric == "auc" else share)
            scores.append(AttributionScore(head.name, CHANCE, truth, metric, "all", *chance))
    return scores


def upper_bound_maps(net: HeadWrapper, images: Tensor, masks: Tensor) -> Tensor:
    """Maps float (N, H, W): the true pixels `masks` bool (N, H, W) themselves, drawn as coarsely as the maps
    at which Grad-CAM looks by default (see `default_target_layer`)."""
    layer = default_target_layer(net, images)
    fields = receptive_fields(net, layer, images)
    places = layers_up_to(net, images, layer)[-1].size_out
    sizes = zip(fields, places, images.shape[2:], strict=True)
    rows, columns = (field.nearest(count, pixels) for field, count, pixels in sizes)
    return layer_upper_bound(masks, rows, columns)


def _against_truths(
    sample: Sample, head: Head, method: str, maps: Tensor, predicted: Tensor, only: str | None = None
) -> list[AttributionScore]:
    scores = []
    right = predicted == sample.targets[head.name]
    for truth, mask in sample.truths[head.name].items():
        if only in (None, truth):
            for name, metric in METRICS.items():
                values = metric(maps, mask)
                for predictions, kept in (("all", slice(None)), ("correct", right), ("wrong", ~right)):
                    ci = bootstrap_ci(values[kept])
                    scores.append(AttributionScore(head.name, method, truth, name, predictions, *ci))
    return scores


def grad_cam_rank_accuracy(net: nn.Module, head: Head, images: Tensor, predicted: Tensor, mask: Tensor) -> float:
    """The mean rank accuracy of Grad-CAM for the predicted classes int64 (N,) against true pixels bool (N, H, W)."""
    maps = attribute(net, images, predicted, grad_cam, head.name).maps
    return bootstrap_ci(METRICS["rank"](maps, mask))[0]


def randomise(net: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """A copy of the network with new random weights (Adebayo et al. 2018: an explanation that stays the same
    does not explain the network), in all layers or in those of these names. The global random state is left as it
    was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = copy.deepcopy(net)
        for name, module in leaf_modules(other).items():
            if layers is None or name in layers:
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_parameters()
                keras_init(module)
    return other


def insertion_deletion(
    net: nn.Module, head: Head, method: Method, images: Tensor, steps: int = 28, warnings: list[str] | None = None
) -> dict[str, Tensor]:
    """{"insertion" and "deletion": float (N, steps + 1)}: the probability of the predicted class as pixels
    are put onto black, or taken from the image, from the highest of the map to the lowest (Petsiuk et al.
    2018)."""
    target = predict(net, [head], images)[head.name]
    result = attribute(net, images, target, method, head.name)
    if warnings is not None:
        warnings += result.warnings
    maps = result.maps.flatten(1)
    places = torch.empty_like(maps, dtype=torch.int64)
    order = maps.argsort(dim=1, descending=True, stable=True)
    places.scatter_(1, order, torch.arange(maps.shape[1]).expand_as(order))
    places = places.view(len(maps), 1, *images.shape[2:])
    wrapper = HeadWrapper(frozen_copy(net), head.name)
    curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
    for step in range(steps + 1):
        first = places < round(step * maps.shape[1] / steps)
        for name, kept in (("insertion", first), ("deletion", ~first)):
            with torch.no_grad():
                logits = torch.cat([wrapper.logits(batch) for batch in (images * kept).split(BATCH)])
            shares = head.probabilities(logits)
            curves[name].append(shares.gather(1, target[:, None])[:, 0])
    return {name: torch.stack(values, dim=1) for name, values in curves.items()}
