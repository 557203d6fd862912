"""Where in an image the evidence for a class lies: Grad-CAM and other attribution methods, by Captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from captum.attr import GuidedBackprop, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from cnnlab import IMAGE_SIZE
from cnnlab.explain.probe import OneHead, last_convolution, layer_named, path, untouched
from cnnlab.heads import Head


@dataclass(frozen=True)
class Heatmaps:
    """`maps` float32 (N, 28, 28), raw, as the method gives them; for a method that looks at a layer also its
    name and the raw map in that layer's own resolution, `coarse` (N, h, w)."""

    maps: Tensor
    layer: str | None = None
    coarse: Tensor | None = None


def heatmaps(net: nn.Module, head: Head, method: str, images: Tensor, targets: Tensor) -> Heatmaps:
    """The evidence for class `targets` int64 (N,) of `head` in `images` float32 (N, C, 28, 28) in [0, 1].

    `method` is a key of `METHODS`. The network is left as it was. The result of an image does not depend
    on the others.
    """
    with untouched(net):
        return METHODS[method](net, head, images, targets)


def _grad_cam(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Heatmaps:
    """Grad-CAM (Selvaraju et al. 2017): ReLU(sum over channels k of a_k A_k), where A_k are the maps of the
    last convolution before the head and a_k the mean over places of the class score's gradient by A_k."""
    name = last_convolution(net, head)
    cam = LayerGradCam(OneHead(net, head), layer_named(net, name))
    with torch.enable_grad():
        coarse = cam.attribute(images, target=targets, relu_attributions=True)[:, 0].detach()
    return Heatmaps(to_image(coarse, net, head, name), name, coarse)


def _saliency(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Heatmaps:
    """The absolute gradient of the class score by the pixel, the largest of the channels (Simonyan et al.
    2014)."""
    gradients = Saliency(OneHead(net, head)).attribute(_leaf(images), target=targets)
    return Heatmaps(gradients.amax(dim=1).detach())


def _integrated_gradients(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Heatmaps:
    """Integrated gradients from black (Sundararajan et al. 2017), summed over channels: a pixel's share in
    the difference of the class score between the image and a black one, with its sign."""
    method = IntegratedGradients(OneHead(net, head))
    shares = method.attribute(_leaf(images), target=targets, n_steps=32, internal_batch_size=500)
    return Heatmaps(shares.sum(dim=1).detach())


def _guided_grad_cam(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Heatmaps:
    """Grad-CAM times guided backpropagation (Selvaraju et al. 2017; Springenberg et al. 2015), summed over
    channels."""
    cam = _grad_cam(net, head, images, targets)
    with warnings.catch_warnings():  # that it sets hooks: `untouched` sees to them
        warnings.simplefilter("ignore", UserWarning)
        guided = GuidedBackprop(OneHead(net, head)).attribute(_leaf(images), target=targets)
    return Heatmaps(cam.maps * guided.sum(dim=1).detach(), cam.layer)


def _occlusion(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Heatmaps:
    """How far the class score falls when a 5 x 5 window around the pixel turns black, the mean over the
    windows that cover it (Zeiler and Fergus 2014)."""
    channels = images.shape[1]
    with torch.no_grad():
        falls = Occlusion(OneHead(net, head)).attribute(
            images, target=targets, sliding_window_shapes=(channels, 5, 5), strides=(channels, 2, 2)
        )
    return Heatmaps(falls.mean(dim=1))


METHODS: dict[str, Callable[[nn.Module, Head, Tensor, Tensor], Heatmaps]] = {
    "grad_cam": _grad_cam,
    "saliency": _saliency,
    "integrated_gradients": _integrated_gradients,
    "guided_grad_cam": _guided_grad_cam,
    "occlusion": _occlusion,
}


def _leaf(images: Tensor) -> Tensor:
    """A copy to take gradients by: Captum would set the caller's own tensor to ask for them."""
    return images.detach().clone().requires_grad_()


def to_image(coarse: Tensor, net: nn.Module, head: Head, layer: str) -> Tensor:
    """Maps (N, h, w) of a layer, brought to 28 x 28 by bilinear interpolation.

    Each of the layer's places stands at the middle of what it sees of the image, so a map is neither
    shifted nor, after a valid convolution, stretched; beyond the outermost places it stays as it is there.
    """
    start, step = _geometry(_until(net, head, layer))
    weights = _interpolation(coarse.shape[-1], start, step)  # (28, n)
    return weights @ coarse @ weights.T


def cells(net: nn.Module, head: Head, layer: str, places: int) -> Tensor:
    """Which of a layer's places each row of the image lies nearest to, int64 (28,); columns are alike."""
    start, step = _geometry(_until(net, head, layer))
    return ((torch.arange(IMAGE_SIZE) + 0.5 - start) / step).round().clamp(0, places - 1).long()


def _until(net: nn.Module, head: Head, layer: str) -> Iterable[nn.Module]:
    for name, module in path(net, head).items():
        yield module
        if name == layer:
            return


def _geometry(layers: Iterable[nn.Module]) -> tuple[float, float]:
    """Where a layer's first place looks, in pixels from the image's edge, and the step to the next one."""
    start, step = 0.5, 1.0
    for module in layers:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            kernel, stride = _first(module.kernel_size), _first(module.stride)
            names = {"same": (kernel - 1) // 2, "valid": 0}
            padding = names[module.padding] if isinstance(module.padding, str) else _first(module.padding)
            start += ((kernel - 1) / 2 - padding) * step
            step *= stride
    return start, step


def _first(size: object) -> int:
    value = size[0] if isinstance(size, tuple) else size
    assert isinstance(value, int)
    return value


def _interpolation(places: int, start: float, step: float) -> Tensor:
    """The linear map (28, places) from a layer's row to the image's."""
    at = ((torch.arange(IMAGE_SIZE) + 0.5 - start) / step).clamp(0, places - 1)
    distance = (at[:, None] - torch.arange(places)[None, :]).abs()
    return (1 - distance).clamp(min=0)
