"""One network, many methods: every map of every image graded, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.data.ground_truth import LineTruths
from cnnlab.interpret.attribution import Method, attribute_head
from cnnlab.interpret.controls import BRIGHTNESS, EDGES, RANDOM, TRIVIAL_MAPS, randomise
from cnnlab.interpret.metrics import METRICS, auc_within, rank_correlation, standard_ranks
from cnnlab.interpret.network import HeadWrapper, default_target_layer, frozen_copy, layers_up_to, receptive_fields
from cnnlab.models.heads import Head
from cnnlab.utils.errors import UserError
from cnnlab.utils.io import write_atomically
from research.attribution.flipping_sets import flipping_set

TRUTHS = ("line", "counterfactual", "own")
BY_HAND = "by_hand"  # the scene and network with weights set by hand
UPPER_BOUND = "upper bound of the layer"
BASELINES = (RANDOM, EDGES, BRIGHTNESS, UPPER_BOUND)
SHOWN = 6  # images with kept maps
CASCADE = ("the last layer", "half of the layers", "all layers")  # that are given random weights
IMAGES = 8  # on which that is done
MAX_PASSES = 150  # forward passes an image of the methods with which it is done; others would take hours
ABSOLUTE = "_absolute"  # the end of the name under which absolute values are graded beside maps with signs

Array = NDArray[Any]


@dataclass(frozen=True)
class Grades:
    """The grades of a network. H heads, M methods (the baselines, the methods, and the absolute values of those with
    signs), N images; NaN without a grade."""

    facts: dict[str, Any]  # network, seed, scene, protocol; names of methods and heads; which methods were refused
    values: Array  # float32 (H, M, truths, metrics, N), as TRUTHS and METRICS name them
    right: Array  # bool (H, N): the answer is true
    flips: Array  # bool (H, N): the answer changes with every counterfactual
    own_size: Array  # float32 (H, N): pixels of the network's own truth, the mean over counterfactuals
    own_proven: Array  # bool (H, N): there is no smaller one
    within: Array  # float32 (H, M, N): auc of the network's own truth among the pixels of the counterfactual alone
    cascade: Array  # float32 (H, M, CASCADE): rank correlation with the maps after layers got random weights
    agreement: Array  # float32 (H, M, M): rank correlation between methods, mean over images
    seconds: Array  # float32 (H, M), of all images
    passes: Array  # float32 (H, M): forward passes an image
    maps: Array  # float16 (H, M, SHOWN, height, width), the largest absolute value 1

    @property
    def methods(self) -> list[str]:
        return list(self.facts["methods"])

    @property
    def heads(self) -> list[str]:
        return list(self.facts["heads"])

    def save(self, path: Path) -> None:
        """Write it in one step."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "facts"}
        buffer = BytesIO()
        np.savez_compressed(buffer, facts=np.array(json.dumps(self.facts)), **arrays)
        write_atomically(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> Grades:
        """Read what `save` wrote. Raises `UserError` for another file."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                kept = {name: arrays[name] for name in arrays.files if name != "facts"}
                return cls(json.loads(str(arrays["facts"])), **kept)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise UserError(f"{path} is broken ({type(error).__name__}); delete it and it is made anew") from error


@dataclass
class _Examined:
    """One head of a network and its maps, {method: float32 (N, H, W)}."""

    head: Head
    net: HeadWrapper
    predicted: Tensor
    maps: dict[str, Tensor]
    seconds: dict[str, float]
    passes: dict[str, float]


def grade(
    net: nn.Module,
    methods: Mapping[str, Method],
    data: LineTruths,
    facts: dict[str, Any],
    heads: Sequence[Head] | None = None,
    exact: Mapping[str, Tensor] | None = None,
    given: Mapping[str, Mapping[str, Tensor]] | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> Grades:
    """The grades of all methods for the predicted classes of a network that answers the `heads` of `data`, None: all.

    `exact` are the network's own true pixels {head: bool (N, H, W)} where they are known and need not be looked for;
    `given` are maps {name: {head: float32 (N, H, W)}} that were made elsewhere. A method that refuses the network has
    no grades; `facts["refused"]` says why.
    """
    refusals: dict[str, str] = {}
    images = data.images.to(device)
    examined = []
    for head in data.heads if heads is None else heads:
        wrapper = HeadWrapper(frozen_copy(net).to(device), head.name)
        one = _Examined(head, wrapper, _predicted(head, wrapper, images), {}, {}, {})
        for name, method in {**{name: TRIVIAL_MAPS[name] for name in BASELINES[:3]}, **methods}.items():
            progress(f"{head.name}: {name}")
            _attribute(one, name, method, images, refusals)
        one.maps |= {name: maps[head.name] for name, maps in (given or {}).items()}
        examined.append(one)
    signed = [name for name in examined[0].maps if any((one.maps[name] < 0).any() for one in examined)]
    for one in examined:
        one.maps |= {f"{name}{ABSOLUTE}": one.maps[name].abs() for name in signed}
    names = [*examined[0].maps, UPPER_BOUND]
    rows = [_graded(one, methods, data, images, (exact or {}).get(one.head.name), names, progress) for one in examined]
    told = {"protocol": data.fingerprint, "methods": names, "heads": [one.head.name for one in examined]}
    return Grades(
        {**facts, **told, "refused": refusals}, **{key: np.stack([row[key] for row in rows]) for key in rows[0]}
    )


def _predicted(head: Head, net: HeadWrapper, images: Tensor) -> Tensor:
    with torch.no_grad():
        return head.predict(net.logits(images))


def _attribute(one: _Examined, name: str, method: Method, images: Tensor, refusals: dict[str, str]) -> None:
    passed = [0]
    counter = one.net.net.register_forward_hook(
        lambda _module, inputs, _output: passed.__setitem__(0, passed[0] + len(inputs[0]))
    )
    try:
        attribute_head(one.net, images[:1], one.predicted[:1], method, name=name)  # finds out where layers look
        passed[0], began = 0, time.perf_counter()
        one.maps[name] = attribute_head(one.net, images, one.predicted, method, name=name).maps
    except UserError as error:
        refusals[name] = str(error)
        one.maps[name] = torch.full((len(images), *images.shape[2:]), torch.nan)
        began = time.perf_counter()
    finally:
        counter.remove()
    one.seconds[name], one.passes[name] = time.perf_counter() - began, passed[0] / len(images)


def _graded(
    one: _Examined,
    methods: Mapping[str, Method],
    data: LineTruths,
    images: Tensor,
    exact: Tensor | None,
    names: Sequence[str],
    progress: Callable[[str], None],
) -> dict[str, Array]:
    """The arrays of `Grades` for one head."""
    head, others = one.head, data.others[one.head.name].to(images.device)
    flips = torch.stack([_predicted(head, one.net, other) != one.predicted for other in others]).all(dim=0).cpu()
    progress(f"{head.name}: the network's own truth")
    sets = [flipping_set(one.net, images, other) for other in others]
    sizes, fewest = torch.stack([s.sizes for s in sets]), torch.stack([s.fewest for s in sets])
    own = torch.stack([s.masks for s in sets]).any(dim=0) if exact is None else exact
    truths = dict(zip(TRUTHS, (data.lines, data.counterfactuals[head.name], own), strict=True))
    values = torch.full((len(names), len(TRUTHS), len(METRICS), len(images)), torch.nan)
    for t, mask in enumerate(truths.values()):
        maps = {**one.maps, UPPER_BOUND: upper_bound_maps(one.net, images, mask)}
        for m, name in enumerate(names):
            values[m, t] = torch.stack([metric(maps[name], mask) for metric in METRICS.values()])
    domain, nothing = truths["counterfactual"], torch.full((len(images),), torch.nan, dtype=torch.float64)
    within = [auc_within(one.maps[name], own, domain) if name in one.maps else nothing for name in names]
    progress(f"{head.name}: random weights")
    shown = torch.stack([one.maps.get(name, data.counterfactuals[head.name].float())[:SHOWN] for name in names])
    scale = shown.abs().amax(dim=(2, 3), keepdim=True)
    arrays = {
        "values": values,
        "right": one.predicted.cpu() == data.targets[head.name],
        "flips": flips,
        "own_size": sizes.float().mean(dim=0),
        "own_proven": (sizes == fewest).all(dim=0) & (sizes > 0).all(dim=0),
        "within": torch.stack(within),
        "cascade": _cascade(one, methods, images, names),
        "agreement": _agreement([one.maps[name] for name in names if name in one.maps], len(names)),
        "seconds": torch.tensor([one.seconds.get(name, torch.nan) for name in names]),
        "passes": torch.tensor([one.passes.get(name, torch.nan) for name in names]),
        "maps": (shown / scale.where(scale > 0, 1)).half(),
    }
    return {name: (array.float() if array.dtype == torch.float64 else array).numpy() for name, array in arrays.items()}


def _cascade(one: _Examined, methods: Mapping[str, Method], images: Tensor, names: Sequence[str]) -> Tensor:
    """Rank correlation with the maps of the first IMAGES images after the head's layers with weights, from the last one
    back, were given random ones: the last one, half of them, all (Adebayo et al. 2018)."""
    layers = [layer.name for layer in one.net.path(images) if any(True for _ in layer.module.parameters())][::-1]
    steps = [layers[:count] for count in (1, (len(layers) + 1) // 2, len(layers))]
    few, predicted = images[:IMAGES], one.predicted[:IMAGES]
    found = torch.full((len(names), len(steps)), torch.nan, dtype=torch.float64)
    for step, chosen in enumerate(steps):
        other = HeadWrapper(frozen_copy(randomise(one.net.net, chosen)), one.net.head)
        for name, method in methods.items():
            if one.maps[name].isnan().any() or one.passes[name] > MAX_PASSES:
                continue
            maps = attribute_head(other, few, predicted, method, name=name).maps
            pairs = [(name, one.maps[name], maps), (f"{name}{ABSOLUTE}", one.maps[name].abs(), maps.abs())]
            for label, own, changed in pairs:
                if label in names:
                    found[names.index(label), step] = rank_correlation(own[:IMAGES], changed).nanmean()
    return found


def _agreement(maps: Sequence[Tensor], size: int) -> Tensor:
    """Mean rank correlation of each two of `maps`, float64 (size, size), NaN beyond them."""
    found = torch.full((size, size), torch.nan, dtype=torch.float64)
    ranks = torch.stack([standard_ranks(one) for one in maps])  # (M, N, pixels)
    found[: len(maps), : len(maps)] = torch.einsum("anp,bnp->nab", ranks, ranks).nanmean(dim=0)
    return found


def upper_bound_maps(net: HeadWrapper, images: Tensor, masks: Tensor) -> Tensor:
    """Return the right pixels `masks` bool (N, H, W) at the resolution of Grad-CAM's default layer, float (N, H, W)."""
    layer = default_target_layer(net, images)
    fields = receptive_fields(net, layer, images)
    places = layers_up_to(net, images, layer)[-1].size_out
    sizes = zip(fields, places, images.shape[2:], strict=True)
    rows, columns = (field.nearest(count, pixels) for field, count, pixels in sizes)
    return layer_upper_bound(masks, rows, columns)


def layer_upper_bound(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the best map at a layer's resolution, float (N, H, W): the mask averaged over each of the layer's cells.
    `rows` int64 (H,) and `columns` int64 (W,) are the cells of rows and columns."""
    down, across = (F.one_hot(cells).to(masks.device, torch.float64) for cells in (rows, columns))  # (H, h), (W, w)
    mean_down, mean_across = (member / member.sum(dim=0).clamp(min=1) for member in (down, across))
    layer_map = mean_down.T @ masks.double() @ mean_across
    return down @ layer_map @ across.T
