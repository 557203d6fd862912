"""Feature visualisation: the image that excites a channel or a class most, by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.interpret.network import HeadWrapper, forward_until, frozen_copy
from cnnlab.models.heads import Head
from cnnlab.plots.result import Result
from cnnlab.utils.errors import UserError

MAX_CHANNELS = 64  # where none are named


@dataclass(frozen=True)
class AscentConfig:
    """The settings of gradient ascent.

    The reports' rule is `AscentConfig(bounded=False, fourier=False, jitter=0)`: from a blank image, add `rate`
    times the gradient divided by its root mean square, `steps` times. `bounded` keeps pixels in [0, 1] by a sigmoid;
    `fourier` climbs in frequencies, each scaled by 1 / frequency (Olah et al. 2017); `jitter` shifts the image by up to
    so many pixels at each step. Raises `UserError` for bad values.
    """

    steps: int = 80
    rate: float = 0.05
    bounded: bool = True
    fourier: bool = True
    jitter: int = 1

    def __post_init__(self) -> None:
        bounds = {"steps": (1, 100_000), "rate": (1e-9, 1e9), "jitter": (0, 10_000)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"ascent: {name}={getattr(self, name)} is not in {low:g}..{high:g}")
        for name in ("steps", "jitter"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"ascent: {name}={getattr(self, name)} is not a whole number")


@dataclass(frozen=True, eq=False, repr=False)
class FeatureVisualization(Result):
    """The images that excite channels or classes most.

    `images` float32 (K, C, H, W), in [0, 1] if bounded; `activation` float32 (K,), the value reached, without jitter;
    `dead` bool (K,): the value never changed; `names` of the channels or classes of `name`, a layer or a head.
    """

    name: str
    names: Sequence[str]
    images: Tensor
    activation: Tensor
    dead: Tensor
    bounded: bool

    def __repr__(self) -> str:
        return f"FeatureVisualization({self.name}, {len(self.images)} images)"

    def plot(self) -> plots.Figure:
        """Draw the images, each with the value that it reached."""
        pixels = self.images
        if not self.bounded:
            low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
            pixels = (pixels - low) / (high - low).clamp(min=1e-12)
        captions = [
            f"{name}: dead, no gradient" if dead else f"{name}: {value:.3g}"
            for name, dead, value in zip(self.names, self.dead.tolist(), self.activation.tolist(), strict=True)
        ]
        scale = "pixels in [0, 1]" if self.bounded else "each stretched from its lowest to its highest pixel"
        title = f"{self.name}: the image that excites each most, with the value it reached ({scale})"
        return plots.small_images((pixels * 255).numpy(), captions, title, marked=self.dead.tolist())

    def arrays(self) -> dict[str, Tensor]:
        return {"images": self.images, "activation": self.activation, "dead": self.dead}

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "names": list(self.names), "bounded": self.bounded}


def visualize_channels(
    net: nn.Module, layer: str, channels: Tensor | None, image_shape: Sequence[int], ascent: AscentConfig
) -> FeatureVisualization:
    """Return for each of `channels` int64 (K,) of a layer (None: its first 64) the image (C, H, W) with the highest
    mean activation. Raises `UserError` for an unknown layer or channel."""
    net = frozen_copy(net)
    with torch.no_grad():
        count = forward_until(net, layer, torch.zeros(1, *image_shape)).shape[1]
    channels = torch.arange(min(count, MAX_CHANNELS)) if channels is None else channels
    if not len(channels) or not ((channels >= 0) & (channels < count)).all():
        raise UserError(f"channels={channels.tolist()}: layer '{layer}' has 0..{count - 1}")

    def value(images: Tensor) -> Tensor:
        values = forward_until(net, layer, images)[range(len(channels)), channels.tolist()]
        return values.flatten(1).mean(dim=1) if values.ndim > 1 else values

    reached = _ascend(value, (len(channels), *image_shape), ascent)
    return FeatureVisualization(layer, [str(channel) for channel in channels.tolist()], *reached, ascent.bounded)


def visualize_classes(
    net: nn.Module, head: Head, image_shape: Sequence[int], ascent: AscentConfig
) -> FeatureVisualization:
    """Return for each class of a head the image (C, H, W) with the highest score."""
    wrapper = HeadWrapper(frozen_copy(net), head.name)
    reached = _ascend(lambda images: wrapper(images).diagonal(), (len(head.classes), *image_shape), ascent)
    return FeatureVisualization(head.name, head.classes, *reached, ascent.bounded)


def _ascend(
    value: Callable[[Tensor], Tensor], shape: tuple[int, ...], ascent: AscentConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, values and which are dead, for `value` (K, C, H, W) -> (K,)."""
    size = (shape[2], shape[3])
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        parameter = torch.zeros(*shape[:3], size[1] // 2 + 1, 2) if ascent.fourier else torch.zeros(shape)
        values = []
        for _ in range(ascent.steps):
            parameter.requires_grad_()
            picture = _picture(parameter, size, ascent)
            shift = torch.randint(-ascent.jitter, ascent.jitter + 1, (2,), generator=generator).tolist()
            # A copy, as the first layer may work in place.
            reached = value(picture.roll(shift, dims=(2, 3)) if any(shift) else picture.clone())
            (grad,) = torch.autograd.grad(reached.sum(), parameter)
            length = grad.flatten(1).square().mean(dim=1).sqrt()
            values.append(reached.detach())
            direction = grad / length.clamp(min=1e-12)[(...,) + (None,) * (grad.ndim - 1)]
            parameter = parameter.detach() + ascent.rate * direction
        images = _picture(parameter, size, ascent).detach()
    with torch.no_grad():
        activation = value(images)
    dead = torch.stack([step == activation for step in values]).all(dim=0)
    return images, activation, dead


def _picture(parameter: Tensor, size: tuple[int, int], ascent: AscentConfig) -> Tensor:
    pixels = parameter
    if ascent.fourier:  # real and imaginary parts, (K, C, H, W // 2 + 1, 2)
        spectrum = torch.view_as_complex(parameter) * _frequency_scale(*size)
        pixels = torch.fft.irfft2(spectrum, s=size, norm="ortho")
    return pixels.sigmoid() if ascent.bounded else pixels


def _frequency_scale(height: int, width: int) -> Tensor:
    """Return 1 / frequency, as in natural images, float32 (H, W // 2 + 1); the lowest frequency stands for 0."""
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.rfftfreq(width)[None, :]
    frequency: Tensor = (down.square() + across.square()).sqrt()
    return 1 / frequency.clamp(min=1 / max(height, width))
