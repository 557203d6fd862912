"""Gradient-based attribution methods, by Captum. All sum over channels and keep the sign unless they say otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor

from cnnlab.interpret.attribution import ImageMap
from cnnlab.interpret.network import HeadWrapper, batch_size
from cnnlab.utils.errors import UserError


def one_baseline(images: Tensor, baselines: float | Tensor = 0.0) -> Tensor:
    """Return a baseline image (1, C, H, W) from one value for all pixels, or an image."""
    if isinstance(baselines, Tensor) and baselines.shape in (images.shape[1:], images[:1].shape):
        return baselines.to(images).expand_as(images[:1])
    if not isinstance(baselines, float | int | np.number):
        given = f" of {tuple(baselines.shape)}" if isinstance(baselines, Tensor) else f"={baselines!s:.60}"
        raise UserError(f"baselines{given}: give a number, or images (1, C, H, W) like yours")
    return torch.full_like(images[:1], baselines)


def saliency(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute gradient of the class score, the largest of the channels (Simonyan et al. 2014)."""
    gradients: Tensor = Saliency(net).attribute(_leaf(images), target=targets)
    return gradients.amax(dim=1)


def smooth_grad(
    net: HeadWrapper, images: Tensor, targets: Tensor, nt_samples: int = 32, stdevs: float = 0.15
) -> Tensor:
    """Return the mean gradient over `nt_samples` images with Gaussian noise, its absolute value, the largest of the
    channels (Smilkov et al. 2017)."""
    settings = {"nt_samples": nt_samples, "nt_samples_batch_size": batch_size(images), "stdevs": float(stdevs)}
    return (
        _one_by_one(NoiseTunnel(Saliency(_of_type(net, images))), images, targets, abs=False, **settings)
        .abs()
        .amax(dim=1)
    )


def input_x_gradient(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the pixel times the gradient of the class score (Shrikumar et al. 2016)."""
    return _summed(InputXGradient(net).attribute(_leaf(images), target=targets))


def integrated_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, n_steps: int = 32, baselines: float | Tensor = 0.0
) -> ImageMap:
    """Return integrated gradients (Sundararajan et al. 2017) from `baselines`: one value for all pixels, or an image
    (1, C, H, W)."""
    baseline = one_baseline(images, baselines)
    settings = {"target": targets, "n_steps": n_steps, "internal_batch_size": batch_size(images)}
    shares = IntegratedGradients(net).attribute(_leaf(images), baseline.expand_as(images), **settings)
    return ImageMap(_summed(shares), baseline)


def expected_gradients(
    net: HeadWrapper, images: Tensor, targets: Tensor, baselines: Tensor | None = None, n_steps: int = 16
) -> ImageMap:
    """Return the mean of integrated gradients over `baselines` float32 (R, C, H, W), other images (Erion et al. 2021),
    with `n_steps` each instead of random places. None: a black image."""
    method, others = IntegratedGradients(net), several_baselines(images, baselines)
    settings = {
        "target": targets,
        "n_steps": n_steps,
        "method": "riemann_middle",
        "internal_batch_size": batch_size(images),
    }
    maps = [_summed(method.attribute(_leaf(images), one[None].expand_as(images), **settings)) for one in others]
    return ImageMap(torch.stack(maps).mean(dim=0), others)


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
    settings = {"baselines": several_baselines(images, baselines), "n_samples": n_samples, "stdevs": float(stdevs)}
    return _summed(_one_by_one(GradientShap(_of_type(net, images)), images, targets, **settings))


def _of_type(net: HeadWrapper, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the head for noisy images, which Captum makes float32."""
    return lambda noisy: net(noisy.to(images.dtype))


def _summed(shares: Tensor) -> Tensor:
    return shares.detach().sum(dim=1)


def _leaf(images: Tensor) -> Tensor:
    """Return a copy to take gradients by: Captum would change the caller's own tensor."""
    return images.detach().clone().requires_grad_()


def several_baselines(images: Tensor, baselines: float | Tensor | None = None) -> Tensor:
    """Return baselines (R, C, H, W). None: a black image."""
    if isinstance(baselines, Tensor) and len(baselines) and baselines.shape[1:] == images.shape[1:]:
        return baselines.to(images)
    return one_baseline(images, 0.0 if baselines is None else baselines)


def _one_by_one(method: Any, images: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Return the shares (N, C, H, W) of one image at a time with the same random numbers, so that a map depends on its
    image only."""
    shares = []
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        with seeded():
            shares.append(method.attribute(_leaf(image), target=target, **settings).detach())
    return torch.cat(shares)


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
