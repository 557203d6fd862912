"""Methods that change the image and watch the class score: no gradients. Squares of black are put on it, or taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, Lime, Occlusion, ShapleyValueSampling
from torch import Tensor
from torch.nn import functional as F

from cnnlab.errors import UserError
from cnnlab.explain.methods.gradients import seeded
from cnnlab.explain.network import HeadWrapper

_PASSES = 250  # images at once


def occlusion(
    net: HeadWrapper, images: Tensor, targets: Tensor, window: int = 5, stride: int = 2, baseline: float = 0.0
) -> Tensor:
    """How far the class score falls when a window of `window` x `window` around the pixel turns to `baseline`, 0 for
    black, the mean over the windows, `stride` apart, that cover it (Zeiler and Fergus 2014)."""
    channels = images.shape[1]
    if not 1 <= stride <= window <= min(images.shape[2:]):
        raise UserError(f"occlusion: window={window} must fit the image, and stride={stride} lie in 1..window")
    several = max(1, _PASSES // len(images))
    sizes = {"sliding_window_shapes": (channels, window, window), "strides": (channels, stride, stride)}
    with torch.no_grad():
        falls: Tensor = Occlusion(net).attribute(
            images, target=targets, baselines=baseline, perturbations_per_eval=several, **sizes
        )
    return falls.mean(dim=1)


def feature_ablation(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4) -> Tensor:
    """How far the class score falls when one square of `patch` x `patch` turns black; the squares do not overlap."""
    with torch.no_grad():
        falls: Tensor = FeatureAblation(net).attribute(
            images,
            target=targets,
            feature_mask=_patches(images, patch),
            perturbations_per_eval=max(1, _PASSES // len(images)),
        )
    return falls.mean(dim=1)


def shapley_sampling(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, samples: int = 5) -> Tensor:
    """Shapley values of squares of `patch` x `patch` on black, by `samples` random orders, the same for every image
    (Castro et al. 2009)."""
    method, squares = ShapleyValueSampling(net), _patches(images, patch)
    with torch.no_grad(), seeded():
        values: Tensor = method.attribute(
            images,
            target=targets,
            feature_mask=squares,
            n_samples=samples,
            perturbations_per_eval=max(1, _PASSES // len(images)),
        )
    return values.mean(dim=1)


def kernel_shap(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, samples: int = 200) -> Tensor:
    """Shapley values of squares of `patch` x `patch` on black, by a weighted linear regression on `samples` random
    subsets (Lundberg and Lee 2017). Needs scikit-learn."""
    return _surrogate(KernelShap, net, images, targets, patch, samples)


def lime(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, samples: int = 200) -> Tensor:
    """The weights of a linear model of the class score by squares of `patch` x `patch`, black or not, near the image
    (Ribeiro et al. 2016; Captum's kernel, and the ridge regression of the paper's own code). Needs scikit-learn."""
    return _surrogate(partial(Lime, interpretable_model=SkLearnRidge(alpha=1.0)), net, images, targets, patch, samples)


def rise(
    net: HeadWrapper, images: Tensor, targets: Tensor, samples: int = 500, cells: int = 7, share: float = 0.5
) -> Tensor:
    """The mean of `samples` random masks, each weighted by the probability of the class of the image under it (RISE,
    Petsiuk et al. 2018). A mask lets a `share` of `cells` x `cells` through, enlarged smoothly and shifted at random;
    the masks are the same for every image."""
    masks = _rise_masks(samples, cells, share, images.shape[2], images.shape[3]).to(images)
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    with torch.no_grad():
        for part in masks.split(max(1, _PASSES // len(images))):
            masked = (images[:, None] * part[None, :, None]).flatten(0, 1)  # (N M, C, H, W)
            wanted = targets.repeat_interleave(len(part))[:, None]
            weights = net(masked).softmax(dim=1).gather(1, wanted).view(len(images), len(part))
            total += torch.einsum("nm,mhw->nhw", weights, part)
    return total / masks.sum(dim=0).clamp(min=1e-6)


def _rise_masks(samples: int, cells: int, share: float, height: int, width: int) -> Tensor:
    """Masks float32 (samples, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    lit = (torch.rand(samples, 1, cells, cells, generator=generator) < share).float()
    step_y, step_x = -(-height // cells), -(-width // cells)
    large = F.interpolate(lit, ((cells + 1) * step_y, (cells + 1) * step_x), mode="bilinear", align_corners=False)[:, 0]
    shifts = torch.stack([torch.randint(step, (samples,), generator=generator) for step in (step_y, step_x)], dim=1)
    return torch.stack([one[y : y + height, x : x + width] for one, (y, x) in zip(large, shifts.tolist(), strict=True)])


def _patches(images: Tensor, patch: int) -> Tensor:
    """The number of the square that a pixel lies in, int64 (1, 1, H, W)."""
    height, width = images.shape[2:]
    if not 1 <= patch <= min(height, width):
        raise UserError(f"patch={patch} must be at least 1 and fit the image")
    across = -(-width // patch)
    rows, columns = torch.arange(height) // patch, torch.arange(width) // patch
    return (rows[:, None] * across + columns[None, :])[None, None].to(images.device)


def _surrogate(
    kind: Callable[[HeadWrapper], Lime], net: HeadWrapper, images: Tensor, targets: Tensor, patch: int, samples: int
) -> Tensor:
    if find_spec("sklearn") is None:
        raise UserError("this method needs scikit-learn: pip install 'cnnlab[surrogate]'")
    method, found = kind(net), []
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        with torch.no_grad(), seeded():
            values = method.attribute(
                image, target=target, feature_mask=_patches(image, patch), n_samples=samples, perturbations_per_eval=100
            )
        found.append(values.mean(dim=1))
    return torch.cat(found)
