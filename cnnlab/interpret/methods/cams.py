"""Class activation maps: methods that look at the maps of one layer, by default the last activation of maps before the
head. For `target_layer` and its errors see `cnnlab.interpret.network.default_target_layer`."""

from __future__ import annotations

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor

from cnnlab.interpret.attribution import LayerMap, to_image
from cnnlab.interpret.network import HeadWrapper, batch_size, bypasses, default_target_layer, maps_of


def grad_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return Grad-CAM (Selvaraju et al. 2017): ReLU(sum over k of a_k A_k), where A_k are the maps of a layer and a_k
    is the mean over places of the gradient of the class score by A_k."""
    name = default_target_layer(net, images, target_layer)
    with torch.enable_grad(), maps_of(net.net, name, images) as maps:
        scores = LayerGradCam(net, maps).attribute(_leaf(images), target=targets, relu_attributions=True)
    return _layer_map(net, images, targets, name, scores[:, 0], target_layer)


def hires_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return HiResCAM (Draelos and Carin 2020): ReLU(sum over k of A_k times the gradient by A_k), place by place."""
    name = default_target_layer(net, images, target_layer)
    with torch.enable_grad(), maps_of(net.net, name, images) as maps:
        products = LayerGradientXActivation(net, maps).attribute(_leaf(images), target=targets)
    return _layer_map(net, images, targets, name, products.sum(dim=1).clamp(min=0), target_layer)


def grad_cam_pp(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return Grad-CAM++ (Chattopadhyay et al. 2018): Grad-CAM where a_k sums the positive gradients G with the weights
    G^2 / (2 G^2 + G^3 sum of A_k), the paper's closed form for an exponential of the score."""
    name, maps, grads = _maps_and_grads(net, images, targets, target_layer)
    below = 2 * grads**2 + grads**3 * maps.sum(dim=(2, 3), keepdim=True)
    share = grads**2 / below.where(below != 0, 1)
    weights = (share * grads.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return _layer_map(net, images, targets, name, (weights * maps).sum(dim=1).clamp(min=0), target_layer)


def layer_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> LayerMap:
    """Return LayerCAM (Jiang et al. 2021): ReLU(sum over k of A_k times the positive part of the gradient by A_k)."""
    name, maps, grads = _maps_and_grads(net, images, targets, target_layer)
    return _layer_map(net, images, targets, name, (grads.clamp(min=0) * maps).sum(dim=1).clamp(min=0), target_layer)


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
            weights.append(net.probabilities(masked).gather(1, targets[:, None])[:, 0])
    combined = (torch.stack(weights, dim=1)[..., None, None] * maps).sum(dim=1)
    return _layer_map(net, images, targets, name, combined.clamp(min=0), target_layer)


def layer_integrated_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None, n_steps: int = 32
) -> LayerMap:
    """Return integrated gradients by the maps of a layer from a black image, summed over channels, with sign."""
    name = default_target_layer(net, images, target_layer)
    with torch.enable_grad(), maps_of(net.net, name, images) as maps:
        method = LayerIntegratedGradients(net, maps)
        at_once = batch_size(images)
        shares = method.attribute(_leaf(images), target=targets, n_steps=n_steps, internal_batch_size=at_once)
    return _layer_map(net, images, targets, name, shares.sum(dim=1), target_layer)


def _maps_and_grads(
    net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None
) -> tuple[str, Tensor, Tensor]:
    """Return the layer's name, its maps (N, K, h, w) and the gradients of the class scores by them."""
    name, kept = default_target_layer(net, images, target_layer), list[Tensor]()
    with torch.enable_grad(), maps_of(net.net, name, images) as passage:
        passage.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        scores = net(_leaf(images)).gather(1, targets[:, None])
        (grads,) = torch.autograd.grad(scores.sum(), kept[-1])
    return name, kept[-1].detach(), grads.detach()


def _leaf(images: Tensor) -> Tensor:
    return images.detach().clone().requires_grad_()


def _layer_map(
    net: HeadWrapper, images: Tensor, targets: Tensor, name: str, values: Tensor, target_layer: str | None
) -> LayerMap:
    """Return the maps with a warning where the layer was not chosen by the user and a class does not need it."""
    warn = target_layer is None and bypasses(net, images, name, targets)
    part = f"layer '{name}' is only a part of what the head looks at: the map does not show the rest"
    return LayerMap(name, values.detach(), (part,) if warn else ())
