"""One network, many methods: how much of the truth each map finds, before and after training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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

from cnnlab.interpret.attribution import Method, attribute_head
from cnnlab.interpret.controls import TRIVIAL_MAPS, randomise
from cnnlab.interpret.metrics import sobel, standard_ranks
from cnnlab.interpret.network import HeadWrapper, frozen_copy
from cnnlab.utils.errors import UserError
from cnnlab.utils.io import write_atomically
from research.attribution.scenes import Pairs
from research.attribution.shapley import exchange_shapley


def _blurred(maps: Tensor, size: int = 3) -> Tensor:
    """Return maps (N, H, W) whose pixels are the means of size x size pixels."""
    return F.avg_pool2d(maps, size, 1, size // 2, count_include_pad=False)


DIFFERENCE = "size of the difference"
TRIVIAL: dict[str, Callable[[Tensor], Tensor]] = {  # all pixels are red, blue or a mixture; chosen on seed 100
    **{name: maps for name, maps in TRIVIAL_MAPS.items() if name not in ("image centre", "image saturation")},
    "edges of red − blue, blurred": lambda images: _blurred(sobel(images[:, :1] - images[:, 2:])),
    "contrast of red − blue, blurred": lambda images: _blurred(
        ((difference := images[:, 0] - images[:, 2]) - _blurred(difference, 7)).abs()
    ),
}

Array = NDArray[Any]


@dataclass(frozen=True)
class Grades:
    """The grades of one network. H heads, M maps (trivial ones first), N images, S of them with Shapley values;
    NaN where a method refuses the network."""

    facts: dict[str, Any]  # scene, network, seed, heads, methods, refused, accuracy, fingerprint
    found: Array  # float16 (2, H, M, N): share of the truth found, trained and untrained
    right: Array  # bool (H, N): the answer is true
    flips: Array  # bool (H, N): every other line changes the answer
    own: Array  # float16 (H, M + 1, S): rank correlation with the network's Shapley values; the last is of |x − x′|
    reliability: Array  # float16 (H, S): of two halves of the Shapley values, their rank correlation

    def save(self, path: Path) -> None:
        """Write it in one step."""
        buffer = BytesIO()
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "facts"}
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
            raise UserError(f"{path} is broken ({type(error).__name__}); delete it to make it anew") from error


def share_found(maps: Tensor, weights: Tensor) -> Tensor:
    """Return the share of the truth that each map finds, float64 (N,) in [0, 1]: the weight of its K highest pixels,
    of all weight. K pixels have a weight above 0; pixels with equal values get the expected share.

    Args:
        maps: Float (N, H, W).
        weights: Float (N, H, W), at least 0, and above 0 somewhere.
    """
    values, truth = maps.double().flatten(1), weights.double().flatten(1)
    count = (truth > 0).sum(dim=1, keepdim=True)
    lowest = values.sort(dim=1, descending=True).values.gather(1, count - 1)
    above, equal = values > lowest, values == lowest
    places = (count - above.sum(dim=1, keepdim=True)) / equal.sum(dim=1, keepdim=True)
    return ((above + places * equal) * truth).sum(dim=1) / truth.sum(dim=1)


def grade(
    net: nn.Module,
    methods: Mapping[str, Method],
    data: Pairs,
    facts: dict[str, Any],
    seed: int = 0,
    shapley_images: int = 24,
    progress: Callable[[str], None] = lambda _: None,
) -> Grades:
    """Grade the maps of all methods for the classes that the network predicts.

    Args:
        net: A network with the heads of `data`.
        methods: {name: method}.
        data: Images with the truth.
        facts: What is known about the network; kept with the grades.
        seed: The seed of the untrained copy, which has random weights.
        shapley_images: For how many images the network's own truth is found.
        progress: Is told what is being done.
    """
    refused = dict[str, str]()
    nets = [frozen_copy(net), frozen_copy(randomise(net, seed=1000 + seed))]
    heads, step = list(data.targets), max(1, len(data.images) // max(1, shapley_images))
    chosen = torch.arange(0, len(data.images), step)[:shapley_images]
    rows: dict[str, list[Tensor]] = {name: [] for name in ("found", "right", "flips", "own", "reliability")}
    for head in heads:
        changes, found, trained_maps = data.changes(head), [], []
        for stage, single in zip(("trained", "untrained"), nets, strict=True):
            wrapper = HeadWrapper(single, head)
            with torch.no_grad():
                answers = wrapper(data.images).argmax(dim=1)
                others = torch.stack([wrapper(other).argmax(dim=1) for other in data.others[head]])
            maps = {name: trivial(data.images) for name, trivial in TRIVIAL.items()}
            for method_name, method in methods.items():
                progress(f"{head}, {stage}: {method_name}")
                try:
                    maps[method_name] = attribute_head(wrapper, data.images, answers, method, name=method_name).maps
                except UserError as error:
                    refused[method_name] = str(error)
                    maps[method_name] = torch.full_like(changes, torch.nan)
            found.append(torch.stack([share_found(map_, changes) for map_ in maps.values()]))
            if stage == "trained":
                trained_maps = [*maps.values(), changes]
                rows["right"].append(answers == data.targets[head])
                rows["flips"].append((others != answers).all(dim=0))
                progress(f"{head}: Shapley values")
                own = [_own(wrapper, data, head, int(i), answers, trained_maps) for i in chosen]
        rows["found"].append(torch.stack(found))
        rows["own"].append(torch.stack([row for row, _ in own], dim=1))
        rows["reliability"].append(torch.stack([reliability for _, reliability in own]))
    known = {**facts, "heads": heads, "methods": [*TRIVIAL, *methods], "refused": refused}
    known["fingerprint"] = fingerprint(net, data)
    arrays = {name: torch.stack(parts) for name, parts in rows.items()}
    arrays["found"] = arrays["found"].transpose(0, 1)
    return Grades(known, **{n: (a.half() if a.is_floating_point() else a).numpy() for n, a in arrays.items()})


def _own(
    net: HeadWrapper, data: Pairs, head: str, i: int, answers: Tensor, maps: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return how each map of image i correlates in rank with its Shapley values, (M,), and how two halves of them do,
    (); on the pixels that change."""
    others, inside = data.others[head][:, i], data.changes(head)[i] > 0
    values = torch.stack([exchange_shapley(net, data.images[i], other, int(answers[i])) for other in others]).mean(0)
    estimates = torch.stack([values.mean(0), values[::2].mean(0), values[1::2].mean(0)])[:, inside][:, None]
    estimates = (estimates / estimates.abs().amax(dim=2, keepdim=True)).round(decimals=4)  # float32 breaks ties
    whole, *halves = standard_ranks(estimates)
    ranks = standard_ranks(torch.stack([map_[i] for map_ in maps])[:, inside][:, None])
    return ranks @ whole, halves[0] @ halves[1]


def fingerprint(net: nn.Module, data: Pairs) -> str:
    """Return a hash of all images, truths and weights."""
    state = hashlib.blake2b(digest_size=8)
    for tensor in [data.images, *data.targets.values(), *data.others.values(), *net.state_dict().values()]:
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
