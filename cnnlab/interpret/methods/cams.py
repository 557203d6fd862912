"""Class activation maps: methods that look at the maps of one layer, by default the last activation of maps before the
head. For `target_layer` and its errors see `cnnlab.interpret.network.default_target_layer`."""

from __future__ import annotations

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor

from cnnlab.interpret.attribution import LayerMap, to_image
from cnnlab.interpret.network import (
    BATCH,
    HeadWrapper,
    default_target_layer,
    last_convolution,
    layer_named,
    record_activations,
)
from cnnlab.utils.errors import UserError


def grad_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return Grad-CAM (Selvaraju et al. 2017): ReLU(sum over k of a_k A_k), where A_k are the maps of a layer and a_k
    is the mean over places of the gradient of the class score by A_k."""
    name = default_target_layer(net, images, target_layer)
    cam = LayerGradCam(net, layer_named(net.net, name))
    with torch.enable_grad():
        scores = cam.attribute(images.detach(), target=targets, relu_attributions=True)
    return LayerMap(name, scores[:, 0].detach())


def hires_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return HiResCAM (Draelos and Carin 2020): ReLU(sum over k of A_k times the gradient by A_k), place by place."""
    name = default_target_layer(net, images, target_layer)
    method = LayerGradientXActivation(net, layer_named(net.net, name))
    with torch.enable_grad():
        products = method.attribute(images.detach(), target=targets)
    return LayerMap(name, products.detach().sum(dim=1).clamp(min=0))


def grad_cam_pp(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return Grad-CAM++ (Chattopadhyay et al. 2018): Grad-CAM where a_k sums the positive gradients G with the weights
    G^2 / (2 G^2 + G^3 sum of A_k), the paper's closed form for an exponential of the score."""
    name, maps, grads = _maps_and_grads(net, images, targets, target_layer)
    below = 2 * grads**2 + grads**3 * maps.sum(dim=(2, 3), keepdim=True)
    share = grads**2 / below.where(below != 0, 1)
    weights = (share * grads.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return LayerMap(name, (weights * maps).sum(dim=1).clamp(min=0))


def layer_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return LayerCAM (Jiang et al. 2021): ReLU(sum over k of A_k times the positive part of the gradient by A_k)."""
    name, maps, grads = _maps_and_grads(net, images, targets, target_layer)
    return LayerMap(name, (grads.clamp(min=0) * maps).sum(dim=1).clamp(min=0))


def score_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return Score-CAM (Wang et al. 2020): ReLU(sum over k of a_k A_k), where a_k is the class probability of the image
    times A_k, upsampled and stretched to [0, 1]. No gradients."""
    name, maps, _ = _maps_and_grads(net, images, targets, target_layer)
    weights = []
    with torch.no_grad():
        for channel in maps.unbind(dim=1):
            mask = to_image(LayerMap(name, channel), net, images).flatten(1)
            low, high = mask.amin(dim=1, keepdim=True), mask.amax(dim=1, keepdim=True)
            mask = (mask - low) / (high - low).where(high > low, 1)
            masked = images * mask.view(len(images), 1, *images.shape[2:])
            weights.append(net(masked).softmax(dim=1).gather(1, targets[:, None])[:, 0])
    combined = (torch.stack(weights, dim=1)[..., None, None] * maps).sum(dim=1)
    return LayerMap(name, combined.clamp(min=0))


def layer_integrated_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None, n_steps: int = 32
) -> LayerMap:
    """Return integrated gradients by the maps of a layer from a black image, summed over channels, with sign. Captum
    replaces every output of a layer that runs several times: then the last convolution is used, or `UserError` raised
    if the layer was named."""
    name = default_target_layer(net, images, target_layer)
    if sum(layer.name == name for layer in net.path(images)) > 1:
        if target_layer is not None:
            raise UserError(f"layer '{name}' runs several times: name another, or target_layer=last_convolution")
        name = last_convolution(net, images)
    method = LayerIntegratedGradients(net, layer_named(net.net, name))
    with torch.enable_grad():
        shares = method.attribute(images.detach(), target=targets, n_steps=n_steps, internal_batch_size=BATCH)
    return LayerMap(name, shares.detach().sum(dim=1))


def _maps_and_grads(
    net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None
) -> tuple[str, Tensor, Tensor]:
    """Return the layer's name, its maps (N, K, h, w) and the gradients of the class scores by them."""
    name = default_target_layer(net, images, target_layer)
    with torch.enable_grad(), record_activations(net.net, [name]) as outputs:
        scores = net(images.detach().clone().requires_grad_()).gather(1, targets[:, None])
        maps = outputs[name]
        (grads,) = torch.autograd.grad(scores.sum(), maps)
    return name, maps.detach(), grads.detach()
