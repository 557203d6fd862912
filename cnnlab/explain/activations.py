"""What each channel of a layer answers to an image, and which channels never answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum.attr import LayerActivation
from torch import Tensor, nn

from cnnlab.explain.network import frozen_copy, layer_named


@dataclass(frozen=True)
class Activations:
    """One layer's answers. Layers without places (dense ones) have 1 x 1 maps.

    `maps` float32 (N, channels, h, w) of the images to show; `dead` and `saturated` bool (channels,), judged
    on a larger sample: dead is the same everywhere in every image; saturated is a ReLU that is above 0
    everywhere in every image, so that it never decides anything.
    """

    layer: str
    maps: Tensor
    dead: Tensor
    saturated: Tensor

    def most_active(self, count: int) -> Tensor:
        """The numbers, int64 (<= count,), in rising order, of the channels with the highest mean activation
        over the images shown."""
        means = self.maps.mean(dim=(0, 2, 3))
        return means.argsort(descending=True, stable=True)[:count].sort().values


def activations(net: nn.Module, layers: Sequence[str], images: Tensor, sample: Tensor) -> list[Activations]:
    """The answers of `layers` to `images` float32 (N, C, H, W) in [0, 1]; dead and saturated channels are
    judged on `sample`, images of the same kind. Raises `UserError` for a layer that is not there."""
    net = frozen_copy(net)
    modules = [layer_named(net, name) for name in layers]

    def answers(batch: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = LayerActivation(net, modules).attribute(batch)
        return [output if output.ndim == 4 else output[:, :, None, None] for output in outputs]

    with torch.no_grad():
        shown = answers(images)
        extremes = [[_extremes(maps) for maps in answers(batch)] for batch in sample.split(250)]
    found = []
    for name, module, maps, own in zip(layers, modules, shown, zip(*extremes, strict=True), strict=True):
        low, high = torch.stack(own).unbind(dim=1)  # (batches, channels) each
        low, high = low.amin(dim=0), high.amax(dim=0)
        saturated = low > 0 if isinstance(module, nn.ReLU) else torch.zeros_like(low, dtype=torch.bool)
        found.append(Activations(name, maps, dead=low == high, saturated=saturated))
    return found


def _extremes(maps: Tensor) -> Tensor:
    """The lowest and highest value of each channel, (2, channels)."""
    return torch.stack([maps.amin(dim=(0, 2, 3)), maps.amax(dim=(0, 2, 3))])
