"""What each channel of a layer answers to an image, and which channels never answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import LayerActivation
from torch import Tensor, nn

from cnnlab.explain.network import frozen_copy, layer_named
from cnnlab.result import Result

if TYPE_CHECKING:
    from cnnlab.plots import Figure


SHOWN = 64  # channels that are drawn, the most active ones


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Result):
    """One layer's answers. Layers without places (dense ones) have 1 x 1 maps.

    `maps` float32 (N, channels, h, w) of `images` float32 (N, C, H, W), `names` a word for each; `dead` and
    `saturated` bool (channels,), judged on a `sample` of so many images: dead is the same everywhere in every image;
    saturated is a ReLU that is above 0 everywhere in every image, so that it never decides anything.
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

    def most_active(self, count: int) -> Tensor:
        """The numbers, int64 (<= count,), in rising order, of the channels with the highest mean activation
        over the images shown."""
        means = self.maps.mean(dim=(0, 2, 3))
        return means.argsort(descending=True, stable=True)[:count].sort().values

    @property
    def shown(self) -> Tensor:
        """The channels that are drawn, int64 (<= 64,)."""
        return self.most_active(SHOWN)

    @property
    def text(self) -> str:
        """The layer in a sentence."""
        count, shown = len(self.dead), len(self.shown)
        text = f"{count} channels of {' x '.join(map(str, self.maps.shape[2:]))}"
        if shown < count:
            text += f"; shown are the {shown} with the highest mean activation over these images"
        return text + (
            f". On {self.sample} images {int(self.dead.sum())} channels are dead (the same everywhere, marked "
            f"'dead') and {int(self.saturated.sum())} saturated (a ReLU above 0 everywhere, marked 'on')."
        )

    def plot(self) -> Figure:
        """A row an image, a small map a channel."""
        from cnnlab import plots

        marks = {int(k): "dead" for k in self.dead.nonzero()} | {int(k): "on" for k in self.saturated.nonzero()}
        return plots.mosaics(
            (self.images * 255).round().to(torch.uint8).numpy(),
            self.maps[:, self.shown].numpy(),
            self.shown.tolist(),
            marks,
            self.names,
            f"{self.layer}: dark is the lowest, light the highest value of each row",
        )

    def arrays(self) -> dict[str, Tensor]:
        return {"maps": self.maps, "images": self.images, "dead": self.dead, "saturated": self.saturated}

    def facts(self) -> dict[str, Any]:
        return {"layer": self.layer, "names": list(self.names), "sample": self.sample}


def activations(
    net: nn.Module, layers: Sequence[str], images: Tensor, sample: Tensor, names: Sequence[str] | None = None
) -> list[Activations]:
    """The answers of `layers` to `images` float32 (N, C, H, W) in [0, 1], `names` a word for each; dead and saturated
    channels are judged on `sample`, images of the same kind. Raises `UserError` for a layer that is not there."""
    names = names or [f"image {i}" for i in range(len(images))]
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
        found.append(Activations(name, maps, images, names, low == high, saturated, len(sample)))
    return found


def _extremes(maps: Tensor) -> Tensor:
    """The lowest and highest value of each channel, (2, channels)."""
    return torch.stack([maps.amin(dim=(0, 2, 3)), maps.amax(dim=(0, 2, 3))])
