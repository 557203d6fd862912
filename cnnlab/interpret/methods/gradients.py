"""Gradient-based attribution methods, by Captum. All sum over channels and keep the sign unless they say otherwise."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from captum.attr import (
    LRP,
    Deconvolution,
    DeepLift,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import Tensor, nn

from cnnlab.interpret.attribution import LayerMap, Method, adds_up, to_image
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.network import BATCH, HeadWrapper, functional_activations, leaf_modules
from cnnlab.utils.errors import UserError


def saliency(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute gradient of the class score, the largest of the channels (Simonyan et al. 2014)."""
    gradients: Tensor = Saliency(net).attribute(_leaf(images), target=targets)
    return gradients.amax(dim=1)


def smooth_grad(
    net: HeadWrapper, images: Tensor, targets: Tensor, nt_samples: int = 32, stdevs: float = 0.15
) -> Tensor:
    """Return the mean of `saliency` over `nt_samples` images with Gaussian noise (Smilkov et al. 2017)."""
    method = NoiseTunnel(Saliency(net))
    settings = {"nt_type": "smoothgrad", "nt_samples": nt_samples, "stdevs": stdevs}
    return _one_by_one(lambda image, target: method.attribute(image, target=target, **settings).amax(dim=1))(
        images, targets
    )


def input_x_gradient(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the pixel times the gradient of the class score (Shrikumar et al. 2016)."""
    return _summed(InputXGradient(net).attribute(_leaf(images), target=targets))


def integrated_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, n_steps: int = 32, baselines: float | Tensor = 0.0
) -> Tensor:
    """Return integrated gradients (Sundararajan et al. 2017) from `baselines`: one value for all pixels, or an image
    (1, C, H, W)."""
    baseline = _constant(images, baselines).expand_as(images)
    settings = {"target": targets, "n_steps": n_steps, "internal_batch_size": BATCH}
    return _summed(IntegratedGradients(net).attribute(_leaf(images), baseline, **settings))


def expected_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, baselines: Tensor | None = None, n_steps: int = 4
) -> Tensor:
    """Return the mean of integrated gradients over `baselines` float32 (R, C, H, W), other images (Erion et al. 2021),
    with `n_steps` each instead of random places. None: a black image."""
    method, others = IntegratedGradients(net), _or_black(baselines, images)
    settings = {"target": targets, "n_steps": n_steps, "method": "riemann_middle", "internal_batch_size": BATCH}
    maps = [_summed(method.attribute(_leaf(images), one[None].expand_as(images), **settings)) for one in others]
    return torch.stack(maps).mean(dim=0)


def gradient_shap(
    net: HeadWrapper,
    images: Tensor,
    targets: Tensor,
    baselines: Tensor | None = None,
    n_samples: int = 64,
    stdevs: float = 0.1,
) -> Tensor:
    """Return gradients at `n_samples` random places between the noisy image and a random one of `baselines`, times the
    difference (Lundberg and Lee 2017)."""
    method, others = GradientShap(net), _or_black(baselines, images)
    settings = {"n_samples": n_samples, "stdevs": stdevs}
    return _one_by_one(lambda image, target: _summed(method.attribute(image, others, target=target, **settings)))(
        images, targets
    )


def _constant(images: Tensor, baselines: float | Tensor = 0.0) -> Tensor:
    """Return one baseline image (1, C, H, W)."""
    if isinstance(baselines, Tensor):
        return baselines.to(images).expand_as(images[:1])
    return torch.full_like(images[:1], baselines)


@adds_up(_constant)
def deep_lift(net: HeadWrapper, images: Tensor, targets: Tensor, baselines: float | Tensor = 0.0) -> Tensor:
    """Return DeepLIFT with the rescale rule (Shrikumar et al. 2017) from `baselines`: one value for all pixels, or an
    image (1, C, H, W). One image at a time: Captum's rule for max-pooling mixes a batch (captum #1276)."""
    method, baseline = DeepLift(net), _constant(images, baselines)
    return _one_by_one(lambda image, target: _summed(method.attribute(image, baseline, target=target)))(images, targets)


@adds_up(lambda images, baselines=None: _or_black(baselines, images))
def deep_lift_shap(net: HeadWrapper, images: Tensor, targets: Tensor, baselines: Tensor | None = None) -> Tensor:
    """Return the mean of DeepLIFT over `baselines` float32 (R, C, H, W) (Lundberg and Lee 2017), one at a time."""
    method, others = DeepLift(net), _or_black(baselines, images)

    def mean(image: Tensor, target: Tensor) -> Tensor:
        shares = [_summed(method.attribute(image, one[None], target=target)) for one in others]
        return torch.stack(shares).mean(dim=0)

    return _one_by_one(mean)(images, targets)


@adds_up(_constant)
def lrp(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return layer-wise relevance propagation (Bach et al. 2015): the alpha-1-beta-0 rule for convolutions, the epsilon
    rule for all other layers (a composite after Montavon et al. 2019)."""
    copied = copy.deepcopy(net)
    for layer in leaf_modules(copied).values():
        if isinstance(layer, nn.ReLU):
            continue  # Captum passes the relevance through
        layer.rule = Alpha1_Beta0_Rule() if type(layer) is nn.Conv2d else EpsilonRule(1e-6)
    with torch.enable_grad():
        return _summed(LRP(copied).attribute(_leaf(images), target=targets))


def guided_backprop(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient that passes only positive contributions through every ReLU (Springenberg et al. 2015)."""
    _check_relus(net, images)
    return _summed(_quietly(GuidedBackprop(net).attribute, _leaf(images), target=targets))


def deconvolution(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient with only its positive part passed by every ReLU (Zeiler and Fergus 2014)."""
    _check_relus(net, images)
    return _summed(_quietly(Deconvolution(net).attribute, _leaf(images), target=targets))


def guided_grad_cam(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return Grad-CAM times guided backpropagation (Selvaraju et al. 2017)."""
    return to_image(grad_cam(net, images, targets), net, images) * guided_backprop(net, images, targets)


def absolute(net: HeadWrapper, images: Tensor, targets: Tensor, method: Method) -> Tensor | LayerMap:
    """Return the absolute values of the maps of a signed `method`."""
    result = method(net, images, targets)
    return LayerMap(result.layer, result.values.abs()) if isinstance(result, LayerMap) else result.abs()


def _check_relus(net: HeadWrapper, images: Tensor) -> None:
    """Raise `UserError` where the rule for ReLU would not reach every activation."""
    others = functional_activations(net, images)
    if others > 0:
        raise UserError(
            f"activations that are no nn.ReLU: {others} (a function like F.relu, or another kind); guided "
            "backpropagation and deconvolution do not reach them; make them nn.ReLU, or choose saliency"
        )


def _summed(shares: Tensor) -> Tensor:
    return shares.detach().sum(dim=1)


def _leaf(images: Tensor) -> Tensor:
    """Return a copy to take gradients by: Captum would change the caller's own tensor."""
    return images.detach().clone().requires_grad_()


def _or_black(baselines: Tensor | None, images: Tensor) -> Tensor:
    return torch.zeros_like(images[:1]) if baselines is None else baselines.to(images)


def _one_by_one(method: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the method for one image at a time with the same random numbers, so that a map depends on its image
    only."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        found = []
        for image, target in zip(images.split(1), targets.split(1), strict=True):
            with seeded():
                found.append(_quietly(method, _leaf(image), target).detach())
        return torch.cat(found)

    return maps


_RANDOM = threading.RLock()  # the random state belongs to all threads


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random numbers of torch and numpy each time; restore their states afterwards."""
    with _RANDOM, torch.random.fork_rng():
        before = np.random.get_state()
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(before)


def _quietly(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    with warnings.catch_warnings():  # Captum warns of the hooks it sets, on our copy
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **kwargs)
