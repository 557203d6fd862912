"""Where in an image the evidence for a class lies: Grad-CAM and other attribution methods, by Captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import GuidedBackprop, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from cnnlab.errors import UserError
from cnnlab.explain.network import HeadWrapper, frozen_copy, last_convolution, layer_named, receptive_fields
from cnnlab.models.heads import Head

BATCH = 250  # images of which the attributions are computed at once


@dataclass(frozen=True)
class Attribution:
    """`maps` float32 (N, H, W), raw, as the method gives them; for a method that looks at a layer also its
    name and the raw map in that layer's own resolution, `layer_map` (N, h, w)."""

    maps: Tensor
    layer: str | None = None
    layer_map: Tensor | None = None


# (network, head, images, targets) -> the maps. The network is a copy that asks for no gradients: no method needs
# to put anything back.
Method = Callable[[nn.Module, Head, Tensor, Tensor], Attribution]


def attribute(net: nn.Module, head: Head, method: Method, images: Tensor, targets: Tensor) -> Attribution:
    """The evidence for class `targets` int64 (N,) of `head` in `images` float32 (N, C, H, W) in [0, 1].

    Any network that answers {head: logits}, or a tensor of logits. It is left as it was. The result of an image
    does not depend on the others.
    """
    net = frozen_copy(net)
    pairs = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    parts = [method(net, head, batch, target) for batch, target in pairs]
    layer_maps = [part.layer_map for part in parts if part.layer_map is not None]
    return Attribution(
        torch.cat([part.maps for part in parts]), parts[0].layer, torch.cat(layer_maps) if layer_maps else None
    )


def grad_cam(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Attribution:
    """Grad-CAM (Selvaraju et al. 2017): ReLU(sum over channels k of a_k A_k), where A_k are the maps of the
    last convolution before the head and a_k the mean over places of the class score's gradient by A_k."""
    name = last_convolution(net, head, images)
    cam = LayerGradCam(HeadWrapper(net, head), layer_named(net, name))
    with torch.enable_grad():
        scores = cam.attribute(images.detach(), target=targets, relu_attributions=True)
    layer_map = scores[:, 0].detach()
    return Attribution(to_image(layer_map, net, head, name, images), name, layer_map)


def saliency(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Attribution:
    """The absolute gradient of the class score by the pixel, the largest of the channels (Simonyan et al.
    2014)."""
    gradients = Saliency(HeadWrapper(net, head)).attribute(_leaf(images), target=targets)
    return Attribution(gradients.amax(dim=1).detach())


def integrated_gradients(net: nn.Module, head: Head, images: Tensor, targets: Tensor, steps: int = 32) -> Attribution:
    """Integrated gradients from black (Sundararajan et al. 2017), summed over channels: a pixel's share in
    the difference of the class score between the image and a black one, with its sign."""
    method = IntegratedGradients(HeadWrapper(net, head))
    shares = method.attribute(_leaf(images), target=targets, n_steps=steps, internal_batch_size=500)
    return Attribution(shares.sum(dim=1).detach())


def guided_grad_cam(net: nn.Module, head: Head, images: Tensor, targets: Tensor) -> Attribution:
    """Grad-CAM times guided backpropagation (Selvaraju et al. 2017; Springenberg et al. 2015), summed over
    channels."""
    cam = grad_cam(net, head, images, targets)
    with warnings.catch_warnings():  # that it sets hooks, on what is a copy
        warnings.simplefilter("ignore", UserWarning)
        guided = GuidedBackprop(HeadWrapper(net, head)).attribute(_leaf(images), target=targets)
    return Attribution(cam.maps * guided.sum(dim=1).detach(), cam.layer)


def occlusion(
    net: nn.Module, head: Head, images: Tensor, targets: Tensor, window: int = 5, stride: int = 2
) -> Attribution:
    """How far the class score falls when a window of `window` x `window` around the pixel turns black, the mean
    over the windows, `stride` apart, that cover it (Zeiler and Fergus 2014)."""
    channels = images.shape[1]
    if not 1 <= stride <= window <= min(images.shape[2:]):
        raise UserError(f"occlusion: window={window} must fit the image, and stride={stride} lie in 1..window")
    with torch.no_grad():
        falls = Occlusion(HeadWrapper(net, head)).attribute(
            images, target=targets, sliding_window_shapes=(channels, window, window), strides=(channels, stride, stride)
        )
    return Attribution(falls.mean(dim=1))


def to_image(layer_map: Tensor, net: nn.Module, head: Head, layer: str, images: Tensor) -> Tensor:
    """Maps (N, h, w) of a layer, brought to the size of `images` (N, C, H, W) by bilinear interpolation between
    the places where the layer looks."""
    (rows, columns), (height, width) = receptive_fields(net, head, layer, images), images.shape[2:]
    down = rows.interpolation(layer_map.shape[1], height).to(layer_map)
    across = columns.interpolation(layer_map.shape[2], width).to(layer_map)
    return down @ layer_map @ across.T


def _leaf(images: Tensor) -> Tensor:
    """A copy to take gradients by: Captum would set the caller's own tensor to ask for them."""
    return images.detach().clone().requires_grad_()
