"""Audit heatmaps: compare attribution methods with the ground truth, with an edge detector and with chance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.interpret.attribution import Method, attribute
from cnnlab.interpret.method_names import method_title
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.metrics import (
    METRICS,
    bootstrap_ci,
    evidence_rank_correlation,
    head_contrast,
    layer_upper_bound,
    sobel,
)
from cnnlab.interpret.network import (
    BATCH,
    HeadWrapper,
    default_target_layer,
    frozen_copy,
    layers_up_to,
    leaf_modules,
    predict_logits,
    receptive_fields,
)
from cnnlab.models.heads import Head
from cnnlab.models.layers import keras_init
from cnnlab.plots.result import Result
from cnnlab.utils.console import as_table
from cnnlab.utils.errors import UserError

CHANCE, RANDOM, EDGES, UPPER_BOUND = "chance", "random map", "edges (Sobel)", "upper bound of the layer"
BRIGHTNESS = "image brightness"
Rows = list[list[str]]


def random_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return random maps float32 (N, H, W)."""
    return torch.rand(len(images), *images.shape[2:], generator=torch.Generator().manual_seed(0))


def edge_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the Sobel edges of the images, float32 (N, H, W)."""
    return sobel(images)


def brightness_map(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the brightest channel of each pixel, float32 (N, H, W)."""
    return images.amax(dim=1)


NETWORK_FREE: dict[str, Method] = {RANDOM: random_map, EDGES: edge_map}


@dataclass(frozen=True)
class AuditRow:
    """A mean score with its 95 % bootstrap interval over `n` images; `predictions` is all, correct or wrong."""

    head: str
    method: str
    truth: str
    metric: str
    predictions: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Sample:
    """Images float32 (N, C, H, W) in [0, 1], {head: true class int64 (N,)}, and {head: {truth: the right pixels bool
    (N, H, W)}}, empty where they are unknown."""

    images: Tensor
    targets: dict[str, Tensor]
    truths: dict[str, dict[str, Tensor]]


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(Result):
    """The scores of heatmaps: one `AuditRow` per head, method, truth and metric. Without ground truth `curves` holds
    the mean probability of the predicted class, {panel: {method: float (steps + 1,)}}. `warnings` is {method: why its
    maps may be wrong}."""

    scores: Sequence[AuditRow]
    heads: Sequence[str]
    methods: Sequence[str]
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def verdicts(self) -> Rows:
        """Return a table, the header first: the rank accuracy of each method and of the edge detector, and whether the
        method is better, with both 95 % intervals apart. Methods with warnings are not called better."""
        rows: Rows = [["head", "method", "right pixels", "edge detector", "better?"]]
        for head in self.heads:
            ranks = [s for s in self.scores if (s.head, s.metric, s.predictions) == (head, "rank", "all")]
            truth = min((s.truth for s in ranks), default="")  # "counterfactual" before "line"
            by_method = {s.method: s for s in ranks if s.truth == truth and s.n}
            edges = by_method.get(EDGES)
            for name in self.methods if edges else ():
                if name in by_method and edges:
                    own = by_method[name]
                    better = "warning" if name in self.warnings else "yes" if own.low > edges.high else "no"
                    rows.append([head, method_title(name), f"{own.mean:.2f}", f"{edges.mean:.2f}", better])
        return rows

    def tables(self) -> dict[str, Rows]:
        """Return {title: rows, the header first}."""
        if self.curves:
            return {"Mean probability over the curve": _pivot(self.scores, ("insertion", "deletion"))}
        tables = {}
        truths = {s.truth for s in self.scores if s.metric in METRICS and s.truth != "head contrast"}
        for truth in sorted(truths):
            for predictions in ("all", "correct", "wrong"):
                kept = [s for s in self.scores if s.truth == truth and s.predictions == predictions]
                mistakes = any(s.predictions == "wrong" and s.n for s in self.scores)
                if any(s.n for s in kept) and (predictions != "correct" or mistakes):
                    tables[f"Truth: {truth}; {predictions} predictions"] = _pivot(kept, tuple(METRICS))
        others = {
            "Rank correlation with the maps of random weights, where one of the two is not 0": "rank correlation",
            "Head contrast": "auc",
        }
        for (title, metric), truth in zip(others.items(), ("randomised weights", "head contrast"), strict=True):
            rows = [s for s in self.scores if s.truth == truth]
            if rows:
                tables[title] = _pivot(rows, (metric,))
        return tables

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(score) for score in self.scores]

    def plot(self, metrics: Sequence[str] = ("rank",)) -> plots.Figure:
        """Draw the scores with their intervals, or the curves."""
        if self.curves:
            return plots.shares(self.curves, "share of pixels", "probability of the predicted class")
        panels: dict[tuple[str, str], dict[str, dict[str, tuple[float, float, float]]]] = {}
        for metric in metrics:
            for head in self.heads:
                panels[metric, head] = {
                    method_title(method): {
                        s.truth: (s.mean, s.low, s.high)
                        for s in self.scores
                        if (s.head, s.method, s.metric, s.predictions) == (head, method, metric, "all")
                    }
                    for method in (*self.methods, CHANCE, EDGES, UPPER_BOUND)
                }
        return plots.intervals(panels)

    def __repr__(self) -> str:
        title, lines = next(iter(self.tables().items()))
        return f"{title}\n{as_table([[cell.partition(' [')[0] for cell in line] for line in lines], left=2)}"


def _pivot(scores: Sequence[AuditRow], columns: tuple[str, ...]) -> Rows:
    """Return a row per head and method, a column per metric."""
    rows: Rows = [["head", "method", *columns, "n"]]
    heads = list(dict.fromkeys(s.head for s in scores))
    pairs = dict.fromkeys((s.head, s.method) for s in scores)
    for head, method in sorted(pairs, key=lambda pair: heads.index(pair[0])):
        own = {s.metric: s for s in scores if (s.head, s.method) == (head, method)}
        cells = [f"{own[m].mean:.3f} [{own[m].low:.3f}, {own[m].high:.3f}]" if m in own else "" for m in columns]
        n = max(s.n for s in own.values())
        if n:
            rows.append([head, method_title(method), *cells, f"{n:,}"])
    return rows


def predict_classes(net: nn.Module, heads: Sequence[Head], images: Tensor) -> dict[str, Tensor]:
    """Return {head: predicted class int64 (N,)}."""
    logits = predict_logits(net, [head.name for head in heads], images)
    return {head.name: head.predict(logits[head.name]) for head in heads}


def audit(
    net: nn.Module,
    heads: Sequence[Head],
    methods: Mapping[str, Method],
    sample: Sample,
    progress: Callable[[str], None] = lambda _: None,
) -> AuditResult:
    """Score the maps of the predicted classes.

    With ground truth: four metrics against each truth, the correlation with the maps of random weights (Adebayo et al.
    2018), and the contrast between heads. The references are chance, random maps, an edge detector, and the best maps
    of the layer's resolution. Without: insertion and deletion curves.
    """
    names = [head.name for head in heads]
    unknown = [name for name in names if not sample.truths.get(name)]
    if unknown and len(unknown) < len(names):
        raise UserError(f"the right pixels of {', '.join(unknown)} are not known: audit the other heads separately")
    if unknown:
        return _audit_without_truth(net, heads, methods, sample.images, progress)
    predicted = predict_classes(net, heads, sample.images)
    randomised, scores, warnings = randomise(net), list[AuditRow](), dict[str, str]()
    for name, method in methods.items():
        maps: dict[str, Tensor] = {}
        for head in heads:
            progress(f"{head.name}: {method_title(name)}")
            target = predicted[head.name]
            result = attribute(net, sample.images, target, method, head.name, name=name)
            maps[head.name] = result.maps
            if result.warnings:
                warnings.setdefault(name, f"{method_title(name)}, {head.name}: {result.warnings[0]}")
            scores += _against_truths(sample, head, name, result.maps, target)
            other = attribute(randomised, sample.images, target, method, head.name, name=name).maps
            ci = bootstrap_ci(evidence_rank_correlation(result.maps, other))
            scores.append(AuditRow(head.name, name, "randomised weights", "rank correlation", "all", *ci))
        known = [head for head in maps if "counterfactual" in sample.truths[head]]
        for first, second in combinations(known, 2):
            masks = [sample.truths[head]["counterfactual"].cpu() for head in (first, second)]
            ci = bootstrap_ci(head_contrast(maps[first], maps[second], *masks))
            scores.append(AuditRow(f"{first} - {second}", name, "head contrast", "auc", "all", *ci))
    for head in heads:
        scores += _baselines(net, head, sample, predicted[head.name])
    return AuditResult(scores, names, list(methods), warnings=warnings)


def _baselines(net: nn.Module, head: Head, sample: Sample, predicted: Tensor) -> list[AuditRow]:
    """Score what needs no network, and the best maps of the layer's resolution."""
    wrapper = HeadWrapper(net, head.name)
    scores: list[AuditRow] = []
    for name, method in NETWORK_FREE.items():
        maps = method(wrapper, sample.images, predicted)
        assert isinstance(maps, Tensor)
        scores += _against_truths(sample, head, name, maps, predicted)
    for truth, mask in sample.truths[head.name].items():
        best = upper_bound_maps(wrapper, sample.images, mask.cpu())
        scores += _against_truths(sample, head, UPPER_BOUND, best, predicted, truth)
        share = mask.flatten(1).double().mean(dim=1)
        for metric in METRICS:
            ci = bootstrap_ci(torch.full_like(share, 0.5) if metric == "auc" else share)
            scores.append(AuditRow(head.name, CHANCE, truth, metric, "all", *ci))
    return scores


def upper_bound_maps(net: HeadWrapper, images: Tensor, masks: Tensor) -> Tensor:
    """Return the right pixels `masks` bool (N, H, W) at the resolution of Grad-CAM's default layer, float (N, H, W)."""
    layer = default_target_layer(net, images)
    fields = receptive_fields(net, layer, images)
    places = layers_up_to(net, images, layer)[-1].size_out
    sizes = zip(fields, places, images.shape[2:], strict=True)
    rows, columns = (field.nearest(count, pixels) for field, count, pixels in sizes)
    return layer_upper_bound(masks, rows, columns)


def _against_truths(
    sample: Sample, head: Head, method: str, maps: Tensor, predicted: Tensor, only: str | None = None
) -> list[AuditRow]:
    scores = []
    maps, right = maps.cpu(), predicted.cpu() == sample.targets[head.name].cpu()
    for truth, mask in sample.truths[head.name].items():
        mask = mask.cpu()
        if only in (None, truth):
            for name, metric in METRICS.items():
                values = metric(maps, mask)
                for predictions, kept in (("all", slice(None)), ("correct", right), ("wrong", ~right)):
                    ci = bootstrap_ci(values[kept])
                    scores.append(AuditRow(head.name, method, truth, name, predictions, *ci))
    return scores


def grad_cam_rank_accuracy(net: nn.Module, head: Head, images: Tensor, predicted: Tensor, mask: Tensor) -> float:
    """Return the mean rank accuracy of Grad-CAM for the classes int64 (N,) against the right pixels bool (N, H, W)."""
    maps = attribute(net, images, predicted, grad_cam, head.name).maps
    return bootstrap_ci(METRICS["rank"](maps, mask))[0]


def randomise(net: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Return a copy with random weights in all layers, or in those named: by `reset_parameters`, Keras's for
    convolutions and dense layers. The global random state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = copy.deepcopy(net)
        for name, module in other.named_modules():
            if layers is not None and name not in layers:
                continue
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:  # no constructor's distribution is known: one with the same mean and deviation
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, parameter.mean().item(), parameter.std(correction=0).item())
        for name, module in leaf_modules(other).items():
            if layers is None or name in layers:
                keras_init(module)
    return other


def _audit_without_truth(
    net: nn.Module,
    heads: Sequence[Head],
    methods: Mapping[str, Method],
    images: Tensor,
    progress: Callable[[str], None],
) -> AuditResult:
    scores, drawn, warnings = list[AuditRow](), dict[str, dict[str, Any]](), dict[str, str]()
    predicted = predict_classes(net, heads, images)
    for head in heads:
        target = predicted[head.name]
        for name, method in {**methods, **NETWORK_FREE}.items():
            progress(f"{head.name}: {method_title(name)}")
            result = attribute(net, images, target, method, head.name, name=name)
            if result.warnings:
                warnings.setdefault(name, f"{method_title(name)}, {head.name}: {result.warnings[0]}")
            for kind, curves in insertion_deletion(net, head, result.maps, images, target).items():
                area = torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)
                scores.append(AuditRow(head.name, name, "none", kind, "all", *bootstrap_ci(area.cpu())))
                panel = kind if len(heads) == 1 else f"{head.name}: {kind}"
                drawn.setdefault(panel, {})[method_title(name)] = curves.mean(dim=0).cpu().numpy()
    return AuditResult(scores, [head.name for head in heads], list(methods), drawn, warnings)


def insertion_deletion(
    net: nn.Module, head: Head, maps: Tensor, images: Tensor, target: Tensor, steps: int = 28
) -> dict[str, Tensor]:
    """Return {"insertion" and "deletion": float (N, steps + 1)}: the probability of the class `target` (N,) as pixels
    are put onto black, or removed from the image, from the highest of the map (N, H, W) to the lowest (Petsiuk et al.
    2018)."""
    flat = maps.to(images.device).flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    places = torch.empty_like(order).scatter_(1, order, ranks)
    places = places.view(len(maps), 1, *images.shape[2:])
    wrapper = HeadWrapper(frozen_copy(net), head.name)
    curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
    for step in range(steps + 1):
        first = places < round(step * flat.shape[1] / steps)
        for name, kept in (("insertion", first), ("deletion", ~first)):
            with torch.no_grad():
                logits = torch.cat([wrapper.logits(batch) for batch in (images * kept).split(BATCH)])
            curves[name].append(head.probabilities(logits).gather(1, target[:, None])[:, 0])
    return {name: torch.stack(values, dim=1) for name, values in curves.items()}
