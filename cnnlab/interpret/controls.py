"""Controls of an audit: maps that need no network, networks with random weights, and curves of removed pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cnnlab.interpret.metrics import sobel
from cnnlab.interpret.network import HeadWrapper, batch_size, leaf_modules
from cnnlab.models.layers import keras_init

RANDOM = "random map"


def centre_map(images: Tensor) -> Tensor:
    """Return maps float32 (N, H, W) that fall from 1 in the middle of the image to 0 in its corners."""
    rows, columns = (torch.linspace(-1, 1, count) for count in images.shape[2:])
    distance = (rows[:, None].square() + columns[None].square()).sqrt() / 2**0.5
    return (1 - distance).expand(len(images), -1, -1)


TRIVIAL_MAPS: dict[str, Callable[[Tensor], Tensor]] = {  # images (N, C, H, W) -> maps (N, H, W), without a network
    RANDOM: lambda images: torch.rand(len(images), *images.shape[2:], generator=torch.Generator().manual_seed(0)),
    "edges (Sobel)": sobel,
    "image brightness": lambda images: images.amax(dim=1),
    "image saturation": lambda images: images.amax(dim=1) - images.amin(dim=1),
    "image centre": centre_map,
}


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy with random weights: by `reset_parameters`, Keras's for convolutions and dense layers. The global
    random state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        other = copy.deepcopy(net)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and not module._forward_pre_hooks:  # as of weight_norm
                reset()
            else:  # no constructor's distribution is known: one with the same mean and deviation
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, parameter.mean().item(), parameter.std(correction=0).item())
        for module in leaf_modules(other).values():
            keras_init(module)
    return other


def insertion_deletion(
    net: HeadWrapper, maps: Tensor, images: Tensor, targets: Tensor, steps: int = 28
) -> dict[str, Tensor]:
    """Return {"insertion" and "deletion": float (N, steps + 1)}: the probability of the class `targets` (N,) as pixels
    are put onto zeros, or removed from the image, from the highest of the map (N, H, W) to the lowest (Petsiuk et al.
    2018)."""
    flat = maps.to(images.device).flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    places = torch.empty_like(order).scatter_(1, order, ranks)
    places = places.view(len(maps), 1, *images.shape[2:])
    curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
    for step in range(steps + 1):
        first = places < round(step * flat.shape[1] / steps)
        for name, kept in (("insertion", first), ("deletion", ~first)):
            with torch.no_grad():
                parts = [net.probabilities(batch) for batch in (images * kept).split(batch_size(images))]
            curves[name].append(torch.cat(parts).gather(1, targets[:, None])[:, 0])
    return {name: torch.stack(values, dim=1) for name, values in curves.items()}
