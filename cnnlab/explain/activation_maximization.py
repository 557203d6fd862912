"""What a channel or an output unit asks for: the input that maximises it, by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError
from cnnlab.explain.network import HeadWrapper, forward_until, frozen_copy
from cnnlab.models.heads import Head
from cnnlab.result import Result

if TYPE_CHECKING:
    from cnnlab.plots import Figure


MOST = 64  # channels of a layer that are maximised where none are named


@dataclass(frozen=True)
class AscentConfig:
    """How to climb. The reports' plain rule is `AscentConfig(bounded=False, fourier=False, tv=0, jitter=0)`: from
    a blank image, add `rate` times the gradient, divided by its root mean square, `steps` times.

    `bounded` keeps the picture a possible image: pixels are a sigmoid, in [0, 1]. `fourier` climbs in the
    frequencies, each scaled by 1 / frequency (Olah et al. 2017). `tv` is the weight of the total variation
    that is taken off, `jitter` how many pixels the picture is shifted at most, at random, at each step.
    Raises `UserError` for values that make no sense.
    """

    steps: int = 80
    rate: float = 0.05
    bounded: bool = True
    fourier: bool = True
    tv: float = 0.0
    jitter: int = 1

    def __post_init__(self) -> None:
        bounds = {"steps": (1, 100_000), "rate": (1e-9, 1e9), "tv": (0, 1e9), "jitter": (0, 10_000)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"ascent: {name}={getattr(self, name)} is not in {low:g}..{high:g}")


@dataclass(frozen=True, eq=False, repr=False)
class Maximization(Result):
    """`images` float32 (K, C, H, W), in [0, 1] where bounded; `activation` float32 (K,), the value at the end
    without jitter; `dead` bool (K,): on the whole way the value never changed, as with a channel that is
    dead, or that a blank image cannot wake; `names` of the channels or classes of `name`, a layer or a head."""

    name: str
    names: Sequence[str]
    images: Tensor
    activation: Tensor
    dead: Tensor
    bounded: bool

    def __repr__(self) -> str:
        return f"Maximization({self.name}, {len(self.images)} images)"

    def plot(self) -> Figure:
        """The inputs, each with the value that it reached."""
        from cnnlab import plots

        pixels = self.images
        if not self.bounded:
            low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
            pixels = (pixels - low) / (high - low).clamp(min=1e-12)
        captions = [
            f"{name}: dead, no slope" if dead else f"{name}: {value:.3g}"
            for name, dead, value in zip(self.names, self.dead.tolist(), self.activation.tolist(), strict=True)
        ]
        scale = (
            "pixels in [0, 1] as they are" if self.bounded else "each stretched from its lowest to its highest pixel"
        )
        title = f"{self.name}: the input that maximises each, with the value it reached ({scale})"
        return plots.small_images((pixels * 255).numpy(), captions, title, marked=self.dead.tolist())

    def arrays(self) -> dict[str, Tensor]:
        return {"images": self.images, "activation": self.activation, "dead": self.dead}

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "names": list(self.names), "bounded": self.bounded}


def maximize_channels(
    net: nn.Module, layer: str, channels: Tensor | None, image_shape: Sequence[int], ascent: AscentConfig
) -> Maximization:
    """For each of `channels` int64 (K,) of a layer (its first 64 where that is None) the input (C, H, W) that maximises
    its mean activation over all places, all in one batch. Raises `UserError` for what is not there."""
    net = frozen_copy(net)
    with torch.no_grad():
        count = forward_until(net, layer, torch.zeros(1, *image_shape)).shape[1]
    channels = torch.arange(min(count, MOST)) if channels is None else channels
    if not len(channels) or not ((channels >= 0) & (channels < count)).all():
        raise UserError(f"channels={channels.tolist()}: layer '{layer}' has 0..{count - 1}")

    def value(images: Tensor) -> Tensor:
        output = forward_until(net, layer, images)
        own = output[torch.arange(len(channels)), channels]
        return own.flatten(1).mean(dim=1) if own.ndim > 1 else own

    found = _climb(value, (len(channels), *image_shape), ascent)
    return Maximization(layer, [str(channel) for channel in channels.tolist()], *found, ascent.bounded)


def maximize_classes(net: nn.Module, head: Head, image_shape: Sequence[int], ascent: AscentConfig) -> Maximization:
    """For each class of a head the input (C, H, W) that maximises its score (of a binary head's first class:
    minimises its one unit)."""
    wrapper = HeadWrapper(frozen_copy(net), head.name)
    found = _climb(lambda images: wrapper(images).diagonal(), (len(head.classes), *image_shape), ascent)
    return Maximization(head.name, head.classes, *found, ascent.bounded)


def _climb(
    value: Callable[[Tensor], Tensor], shape: tuple[int, ...], ascent: AscentConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, values and which are dead, by gradient ascent from blank images on `value` (K, C, H, W) -> (K,), image k
    on its own number k."""
    size = (shape[2], shape[3])
    generator = torch.Generator().manual_seed(0)  # the same shifts for every picture and every batch
    with torch.enable_grad():
        parameter = torch.zeros(*shape[:3], size[1] // 2 + 1, 2) if ascent.fourier else torch.zeros(shape)
        values = []
        for _ in range(ascent.steps):
            parameter.requires_grad_()
            picture = _picture(parameter, size, ascent)
            shift = torch.randint(-ascent.jitter, ascent.jitter + 1, (2,), generator=generator).tolist()
            # A copy at least, as a network's first layer may work in place; a roll costs four.
            reached = value(picture.roll(shift, dims=(2, 3)) if any(shift) else picture.clone())
            penalty = ascent.tv * _variation(picture).sum() if ascent.tv else 0.0
            (slope,) = torch.autograd.grad(reached.sum() - penalty, parameter)
            length = slope.flatten(1).square().mean(dim=1).sqrt()
            values.append(reached.detach())
            unit = slope / length.clamp(min=1e-12)[(...,) + (None,) * (slope.ndim - 1)]
            parameter = parameter.detach() + ascent.rate * unit
        images = _picture(parameter, size, ascent).detach()
    with torch.no_grad():
        activation = value(images)
    dead = torch.stack([step == activation for step in values]).all(dim=0)
    return images, activation, dead


def _picture(parameter: Tensor, size: tuple[int, int], ascent: AscentConfig) -> Tensor:
    pixels = parameter
    if ascent.fourier:  # real and imaginary parts apart, (K, C, H, W // 2 + 1, 2)
        spectrum = torch.view_as_complex(parameter) * _scale(*size)
        pixels = torch.fft.irfft2(spectrum, s=size, norm="ortho")
    return pixels.sigmoid() if ascent.bounded else pixels


@cache
def _scale(height: int, width: int) -> Tensor:
    """1 / frequency, as in natural images, float32 (H, W // 2 + 1); the lowest frequency for none."""
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.rfftfreq(width)[None, :]
    frequency: Tensor = (down.square() + across.square()).sqrt()
    return 1 / frequency.clamp(min=1 / max(height, width))


def _variation(picture: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, (K,)."""
    down = (picture[:, :, 1:] - picture[:, :, :-1]).abs().flatten(1).mean(dim=1)
    across = (picture[:, :, :, 1:] - picture[:, :, :, :-1]).abs().flatten(1).mean(dim=1)
    return down + across
