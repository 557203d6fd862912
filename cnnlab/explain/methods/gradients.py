"""Methods that ask how the class score changes with the pixels: gradients, and paths and rules made of them."""

from __future__ import annotations

import copy
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

from cnnlab.explain.attribution import LayerMap, Method, adds_up, to_image
from cnnlab.explain.methods.cams import grad_cam
from cnnlab.explain.network import HeadWrapper, leaf_modules


def saliency(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """The absolute gradient of the class score by the pixel, the largest of the channels (Simonyan et al.
    2014)."""
    gradients: Tensor = Saliency(net).attribute(_leaf(images), target=targets)
    return gradients.amax(dim=1)


def smooth_grad(net: HeadWrapper, images: Tensor, targets: Tensor, samples: int = 32, noise: float = 0.15) -> Tensor:
    """The mean of `saliency` over `samples` images with Gaussian noise of deviation `noise` (Smilkov et al. 2017)."""
    method = NoiseTunnel(Saliency(net))
    settings = {"nt_type": "smoothgrad", "nt_samples": samples, "stdevs": noise}
    return _one_by_one(lambda image, target: method.attribute(image, target=target, **settings).amax(dim=1))(
        images, targets
    )


def input_x_gradient(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the class score times the pixel, summed over channels, with its sign (Shrikumar et al. 2016)."""
    return _summed(InputXGradient(net).attribute(_leaf(images), target=targets))


def integrated_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, steps: int = 32, baseline: float = 0.0
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017), summed over channels: a pixel's share in the difference of the
    class score between the image and one that is `baseline` everywhere, 0 for black, with its sign."""
    method = IntegratedGradients(net)
    return _summed(
        method.attribute(_leaf(images), baseline, target=targets, n_steps=steps, internal_batch_size=_PASSES)
    )


def expected_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, references: Tensor | None = None, steps: int = 4
) -> Tensor:
    """The mean of integrated gradients over `references` float32 (R, C, H, W), other images of the data set (Erion et
    al. 2021), in `steps` each instead of at random places; of a black image where none are given."""
    method = IntegratedGradients(net)
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    for reference in _references(references, images):
        total += _summed(
            method.attribute(
                _leaf(images), reference[None].expand_as(images), target=targets, n_steps=steps,
                method="riemann_middle", internal_batch_size=_PASSES,
            )
        )  # fmt: skip
    return total / len(_references(references, images))


def gradient_shap(
    net: HeadWrapper,
    images: Tensor,
    targets: Tensor,
    references: Tensor | None = None,
    samples: int = 64,
    noise: float = 0.1,
) -> Tensor:
    """Gradients at `samples` random places between the image, with noise, and a random one of `references`, times the
    way (Lundberg and Lee 2017), summed over channels."""
    method, baselines = GradientShap(net), _references(references, images)
    settings = {"n_samples": samples, "stdevs": noise}
    return _one_by_one(lambda image, target: _summed(method.attribute(image, baselines, target=target, **settings)))(
        images, targets
    )


def _constant(images: Tensor, baseline: float = 0.0) -> Tensor:
    return torch.full_like(images[:1], baseline)


@adds_up(_constant)
def deep_lift(net: HeadWrapper, images: Tensor, targets: Tensor, baseline: float = 0.0) -> Tensor:
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017) from an image that is `baseline` everywhere, summed over
    channels. An image at a time: Captum's rule for max-pooling mixes the images of a batch (captum #1276)."""
    method = DeepLift(net)
    return _one_by_one(lambda image, target: _summed(method.attribute(image, baseline, target=target)))(images, targets)


@adds_up(lambda images, references=None: _references(references, images))
def deep_lift_shap(net: HeadWrapper, images: Tensor, targets: Tensor, references: Tensor | None = None) -> Tensor:
    """The mean of DeepLIFT over `references` (Lundberg and Lee 2017), summed over channels, a reference at a time."""
    method, baselines = DeepLift(net), _references(references, images)

    def mean(image: Tensor, target: Tensor) -> Tensor:
        shares = [_summed(method.attribute(image, one[None], target=target)) for one in baselines]
        return torch.stack(shares).mean(dim=0)

    return _one_by_one(mean)(images, targets)


@adds_up(_constant)
def lrp(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Layer-wise relevance propagation (Bach et al. 2015), summed over channels: the alpha-1-beta-0 rule for
    convolutions and the epsilon rule for all other layers (a composite after Montavon et al. 2019)."""
    copied = copy.deepcopy(net)
    for layer in leaf_modules(copied).values():
        if isinstance(layer, nn.ReLU):
            continue  # Captum passes the relevance through
        layer.rule = Alpha1_Beta0_Rule() if type(layer) is nn.Conv2d else EpsilonRule(1e-6)
    with torch.enable_grad():
        return _summed(LRP(copied).attribute(_leaf(images), target=targets))


def guided_backprop(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """The gradient that follows positive contributions alone, backwards through every ReLU (Springenberg et al. 2015),
    summed over channels."""
    return _summed(_quietly(GuidedBackprop(net).attribute, _leaf(images), target=targets))


def deconvolution(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """The gradient of which every ReLU passes the positive part, whatever its input was (Zeiler and Fergus 2014),
    summed over channels."""
    return _summed(_quietly(Deconvolution(net).attribute, _leaf(images), target=targets))


def guided_grad_cam(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM times guided backpropagation (Selvaraju et al. 2017; Springenberg et al. 2015), summed over
    channels."""
    return to_image(grad_cam(net, images, targets), net, images) * guided_backprop(net, images, targets)


def absolute(net: HeadWrapper, images: Tensor, targets: Tensor, method: Method) -> Tensor | LayerMap:
    """The absolute values of the maps of a `method` with signs: how much a pixel counts, for or against the class."""
    found = method(net, images, targets)
    return LayerMap(found.layer, found.values.abs()) if isinstance(found, LayerMap) else found.abs()


_PASSES = 250  # images at once on the way from a baseline


def _summed(shares: Tensor) -> Tensor:
    return shares.detach().sum(dim=1)


def _leaf(images: Tensor) -> Tensor:
    """A copy to take gradients by: Captum would set the caller's own tensor to ask for them."""
    return images.detach().clone().requires_grad_()


def _references(references: Tensor | None, images: Tensor) -> Tensor:
    return torch.zeros_like(images[:1]) if references is None else references.to(images)


def _one_by_one(method: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Maps of (images, targets), an image at a time and with the same random numbers for each: so that what is random
    or mixes a batch, too, is a function of the image alone."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        found = []
        for image, target in zip(images.split(1), targets.split(1), strict=True):
            with seeded():
                found.append(_quietly(method, _leaf(image), target).detach())
        return torch.cat(found)

    return maps


@contextmanager
def seeded() -> Iterator[None]:
    """Within, the same random numbers each time, of torch and of numpy, whose states are then as they were."""
    before = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(before)


def _quietly(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    with warnings.catch_warnings():  # that it sets hooks, on what is a copy
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **kwargs)
