"""The activations of a layer for images, and its dead and saturated channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import LayerActivation
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.interpret.attribution import displayable
from cnnlab.interpret.network import as_maps, batch_size, frozen_copy, layer_named, record_activations
from cnnlab.plots.result import Result
from cnnlab.utils.errors import UserError

SHOWN = 32  # channels that are drawn
SAMPLE = 500  # test images on which dead and saturated channels are judged


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Result):
    """The activations of one layer.

    `maps` float32 (N, channels, h, w) of `images` float32 (N, C, H, W) with `names`; dense layers have 1 x 1 maps.
    `dead` and `saturated` bool (channels,) are judged on `sample` images: a dead channel is constant, a saturated one
    is a ReLU that is always above 0.
    """

    layer: str
    maps: Tensor
    images: Tensor
    names: Sequence[str]
    dead: Tensor
    saturated: Tensor
    sample: int

    def __repr__(self) -> str:
        return f"Activations({self.layer}, {self.text})"

    @property
    def shown(self) -> Tensor:
        """The channels that are drawn, int64 (<= 32,): those with the highest mean activation, in rising order."""
        means = self.maps.mean(dim=(0, 2, 3))
        return means.argsort(descending=True, stable=True)[:SHOWN].sort().values

    @property
    def text(self) -> str:
        """The layer in a sentence."""
        count, shown = len(self.dead), len(self.shown)
        most = f"; shown are the {shown} with the highest mean activation" if shown < count else ""
        return (
            f"{count} channels of {' x '.join(map(str, self.maps.shape[2:]))}{most}. On {self.sample} images "
            f"{int(self.dead.sum())} channels are dead (constant, marked 'dead') and {int(self.saturated.sum())} "
            "saturated (a ReLU always above 0, marked 'on')."
        )

    def plot(self) -> plots.Figure:
        """Draw a row per image, with a small map per channel."""
        marks = {int(k): "dead" for k in self.dead.nonzero()} | {int(k): "on" for k in self.saturated.nonzero()}
        return plots.mosaics(
            (displayable(self.images)[0] * 255).round().to(torch.uint8).numpy(),
            self.maps[:, self.shown].numpy(),
            self.shown.tolist(),
            marks,
            self.names,
            f"{self.layer}: dark is the lowest, light the highest value of each row",
        )

    def arrays(self) -> dict[str, Tensor]:
        return {"maps": self.maps, "images": self.images, "dead": self.dead, "saturated": self.saturated}

    def metadata(self) -> dict[str, Any]:
        return {"layer": self.layer, "names": list(self.names), "sample": self.sample}


def activations(
    net: nn.Module, layers: Sequence[str], images: Tensor, sample: Tensor, names: Sequence[str] | None = None
) -> list[Activations]:
    """Return the activations of `layers` for `images` float32 (N, C, H, W) in [0, 1] with `names`. Dead and saturated
    channels are judged on `sample`, images of the same kind. Raises `UserError` for an unknown layer."""
    names = names or [f"image {i}" for i in range(len(images))]
    net = frozen_copy(net)
    modules = [layer_named(net, name) for name in layers]

    def outputs(batch: Tensor) -> list[Tensor]:
        values: list[Tensor] = LayerActivation(net, modules).attribute(batch)
        maps = [as_maps(value, batch.shape[2:]) for value in values]
        return [value.flatten(1)[:, :, None, None] if m is None else m for value, m in zip(values, maps, strict=True)]

    with torch.no_grad():
        with record_activations(net, layers) as recorded:
            net(images[:1])
        for name in layers:
            if not isinstance(recorded.get(name), Tensor):
                raise UserError(f"layer '{name}' does not run, or answers no tensor: choose another")
        shown = outputs(images)
        extremes = [[_extremes(maps) for maps in outputs(batch)] for batch in sample.split(batch_size(sample))]
    results = []
    for name, module, maps, batches in zip(layers, modules, shown, zip(*extremes, strict=True), strict=True):
        low, high = torch.stack(batches).unbind(dim=1)  # (batches, channels) each
        low, high = low.amin(dim=0), high.amax(dim=0)
        saturated = low > 0 if isinstance(module, nn.ReLU) else torch.zeros_like(low, dtype=torch.bool)
        results.append(Activations(name, maps, images, names, low == high, saturated, len(sample)))
    return results


def _extremes(maps: Tensor) -> Tensor:
    """Return the lowest and highest value of each channel, (2, channels)."""
    return torch.stack([maps.amin(dim=(0, 2, 3)), maps.amax(dim=(0, 2, 3))])
