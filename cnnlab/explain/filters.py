"""What a channel or an output unit asks for: the input that maximises it, by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from cnnlab import IMAGE_SIZE, UserError
from cnnlab.explain.probe import OneHead, output_of, untouched
from cnnlab.heads import Head


@dataclass(frozen=True)
class Ascent:
    """How to climb. The reports' plain rule is `Ascent(bounded=False, fourier=False, tv=0, jitter=0)`: from a
    blank image, add `rate` times the gradient, divided by its root mean square, `steps` times.

    `bounded` keeps the picture a possible image: pixels are a sigmoid, in [0, 1]. `fourier` climbs in the
    frequencies, each scaled by 1 / frequency (Olah et al. 2017). `tv` is the weight of the total variation
    that is taken off, `jitter` how many pixels the picture is shifted at most, at random, at each step.
    """

    steps: int = 80
    rate: float = 0.05
    bounded: bool = True
    fourier: bool = True
    tv: float = 0.0
    jitter: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0 or self.tv < 0 or not 0 <= self.jitter < IMAGE_SIZE:
            raise UserError(
                f"filters: steps={self.steps}, rate={self.rate}, tv={self.tv}, jitter={self.jitter} "
                "must be at least 1, above 0, at least 0 and in 0..27"
            )


@dataclass(frozen=True)
class Filters:
    """`images` float32 (K, C, 28, 28), in [0, 1] where bounded; `reached` float32 (K,), the value at the end
    without jitter; `dead` bool (K,): on the whole way the value never changed, as with a channel that is
    dead, or that a blank image cannot wake."""

    images: Tensor
    reached: Tensor
    dead: Tensor


def layer_filters(net: nn.Module, layer: str, channels: Tensor, in_channels: int, ascent: Ascent) -> Filters:
    """For each of `channels` int64 (K,) of a layer the input that maximises its mean activation over all
    places, all in one batch."""

    def value(images: Tensor) -> Tensor:
        output = output_of(net, layer, images)
        own = output[torch.arange(len(channels)), channels]
        return own.flatten(1).mean(dim=1) if own.ndim > 1 else own

    return _climb(net, value, len(channels), in_channels, ascent)


def class_filters(net: nn.Module, head: Head, in_channels: int, ascent: Ascent) -> Filters:
    """For each class of a head the input that maximises its score (of a binary head's first class: minimises
    its one unit)."""
    one = OneHead(net, head)
    return _climb(net, lambda images: one(images).diagonal(), len(head.classes), in_channels, ascent)


def _climb(
    net: nn.Module, value: Callable[[Tensor], Tensor], count: int, in_channels: int, ascent: Ascent
) -> Filters:
    """Gradient ascent from blank images on `value` (K, C, 28, 28) -> (K,), image k on its own number k."""
    shape = (count, in_channels, IMAGE_SIZE, IMAGE_SIZE)
    generator = torch.Generator().manual_seed(0)  # the same shifts for every picture and every batch
    with untouched(net), torch.enable_grad():
        parameter = _spectrum(shape) if ascent.fourier else torch.zeros(shape)
        goals = []
        for _ in range(ascent.steps):
            parameter.requires_grad_()
            picture = _picture(parameter, ascent)
            shift = torch.randint(-ascent.jitter, ascent.jitter + 1, (2,), generator=generator).tolist()
            goal = value(picture.roll(shift, dims=(2, 3)))
            taken_off = ascent.tv * _variation(picture).sum() if ascent.tv else 0.0
            (slope,) = torch.autograd.grad(goal.sum() - taken_off, parameter)
            size = slope.flatten(1).abs().square().mean(dim=1).sqrt()
            goals.append(goal.detach())
            unit = slope / size.clamp(min=1e-12)[(...,) + (None,) * (slope.ndim - 1)]
            parameter = parameter.detach() + ascent.rate * unit
        images = _picture(parameter, ascent).detach()
        with torch.no_grad():
            reached = value(images)
        dead = torch.stack([goal == reached for goal in goals]).all(dim=0)
        return Filters(images, reached, dead)


def _picture(parameter: Tensor, ascent: Ascent) -> Tensor:
    pixels = parameter
    if ascent.fourier:
        spectrum = torch.view_as_complex(parameter) * _scale()
        pixels = torch.fft.irfft2(spectrum, s=(IMAGE_SIZE, IMAGE_SIZE), norm="ortho")
    return pixels.sigmoid() if ascent.bounded else pixels


def _spectrum(shape: tuple[int, int, int, int]) -> Tensor:
    """A blank spectrum, real and imaginary parts apart: (K, C, 28, 15, 2)."""
    return torch.zeros(*shape[:3], IMAGE_SIZE // 2 + 1, 2)


@cache
def _scale() -> Tensor:
    """1 / frequency, as in natural images, float32 (28, 15); the lowest frequency for none."""
    down = torch.fft.fftfreq(IMAGE_SIZE)[:, None]
    across = torch.fft.rfftfreq(IMAGE_SIZE)[None, :]
    frequency: Tensor = (down.square() + across.square()).sqrt()
    return 1 / frequency.clamp(min=1 / IMAGE_SIZE)


def _variation(picture: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, (K,)."""
    down = (picture[:, :, 1:] - picture[:, :, :-1]).abs().flatten(1).mean(dim=1)
    across = (picture[:, :, :, 1:] - picture[:, :, :, :-1]).abs().flatten(1).mean(dim=1)
    return down + across
