"""Attribution methods that change the image and watch the class score. They need no gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, Lime, Occlusion, ShapleyValueSampling
from torch import Tensor
from torch.nn import functional as F

from cnnlab.interpret.attribution import ImageMap
from cnnlab.interpret.methods.gradients import seeded
from cnnlab.interpret.network import HeadWrapper, batch_size
from cnnlab.utils.errors import UserError, check_installed


def occlusion(
    net: HeadWrapper,
    images: Tensor,
    targets: Tensor,
    sliding_window_shapes: int = 5,
    strides: int = 2,
    baselines: float = 0.0,
) -> Tensor:
    """Return the drop of the class score when a square window around the pixel turns to `baselines`, the mean over the
    windows that cover the pixel (Zeiler and Fergus 2014). Shape and stride are in pixels."""
    window, channels = sliding_window_shapes, images.shape[1]
    if not (isinstance(window, int) and isinstance(strides, int)):
        raise UserError(f"occlusion: sliding_window_shapes={window} and strides={strides} are whole numbers of pixels")
    if not 1 <= strides <= window <= min(images.shape[2:]):
        raise UserError(
            f"occlusion: sliding_window_shapes={window} must fit the image, and strides={strides} lie in "
            "1..sliding_window_shapes"
        )
    with torch.no_grad():
        drops: Tensor = Occlusion(net).attribute(
            images,
            target=targets,
            baselines=baselines,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, strides, strides),
            perturbations_per_eval=_at_once(images),
        )
    return drops.mean(dim=1)


def feature_ablation(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4) -> Tensor:
    """Return the drop of the class score when one square of a grid of `patch` x `patch` pixels turns black. Every pixel
    of a square holds the square's value."""
    with torch.no_grad():
        drops: Tensor = FeatureAblation(net).attribute(
            images, target=targets, feature_mask=_grid(images, patch), perturbations_per_eval=_at_once(images)
        )
    return drops.mean(dim=1)


def shapley_sampling(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, n_samples: int = 5) -> Tensor:
    """Return Shapley values of the squares of a grid on black, by `n_samples` random orders, the same for every image
    (Castro et al. 2009). Every pixel of a square holds the square's value."""
    with torch.no_grad(), seeded():
        values: Tensor = ShapleyValueSampling(net).attribute(
            images,
            target=targets,
            feature_mask=_grid(images, patch),
            n_samples=n_samples,
            perturbations_per_eval=_at_once(images),
        )
    return values.mean(dim=1)


def kernel_shap(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, n_samples: int = 200) -> ImageMap:
    """Return Shapley values of the squares of a grid on black, by a weighted linear regression on `n_samples` random
    subsets (Lundberg and Lee 2017). Needs scikit-learn."""
    return _surrogate(KernelShap, net, images, targets, patch, n_samples)


def lime(net: HeadWrapper, images: Tensor, targets: Tensor, patch: int = 4, n_samples: int = 200) -> ImageMap:
    """Return the weights of a linear model of the class score by the squares of a grid, black or not (Ribeiro et al.
    2016; Captum's kernel, and the ridge regression of the paper's code). Needs scikit-learn."""
    return _surrogate(
        partial(Lime, interpretable_model=SkLearnRidge(alpha=1.0)), net, images, targets, patch, n_samples
    )


def rise(
    net: HeadWrapper, images: Tensor, targets: Tensor, n_samples: int = 500, cells: int = 7, share: float = 0.5
) -> Tensor:
    """Return the mean of `n_samples` random masks, each weighted by the class probability of the masked image (RISE,
    Petsiuk et al. 2018). A mask keeps a `share` of `cells` x `cells`, enlarged smoothly and shifted at random; all
    images have the same masks."""
    if cells < 1:
        raise UserError(f"rise: cells={cells} must be at least 1")
    masks = _rise_masks(n_samples, cells, share, images.shape[2], images.shape[3]).to(images.device)
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    with torch.no_grad():
        for part in masks.split(_at_once(images)):
            masked = (images[:, None] * part[None, :, None].to(images)).flatten(0, 1)  # (N M, C, H, W)
            repeated = targets.repeat_interleave(len(part))[:, None]
            weights = net.probabilities(masked).gather(1, repeated).view(len(images), len(part))
            total += torch.einsum("nm,mhw->nhw", weights.float(), part)
    return total / masks.sum(dim=0).clamp(min=1e-6)


def _at_once(images: Tensor) -> int:
    """Return how many changes of each image fit in one batch."""
    return max(1, batch_size(images) // len(images))


def _rise_masks(n_samples: int, cells: int, share: float, height: int, width: int) -> Tensor:
    """Return masks float32 (n_samples, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    lit = (torch.rand(n_samples, 1, cells, cells, generator=generator) < share).float()
    step_y, step_x = -(-height // cells), -(-width // cells)
    large = F.interpolate(lit, ((cells + 1) * step_y, (cells + 1) * step_x), mode="bilinear", align_corners=False)[:, 0]
    shifts = torch.stack([torch.randint(step, (n_samples,), generator=generator) for step in (step_y, step_x)], dim=1)
    return torch.stack(
        [mask[y : y + height, x : x + width] for mask, (y, x) in zip(large, shifts.tolist(), strict=True)]
    )


def _grid(images: Tensor, patch: int) -> Tensor:
    """Return the number of each pixel's square, int64 (1, 1, H, W)."""
    height, width = images.shape[2:]
    if not 1 <= patch <= min(height, width):
        raise UserError(f"patch={patch} must be at least 1 and fit the image")
    rows, columns = torch.arange(height) // patch, torch.arange(width) // patch
    return (rows[:, None] * -(-width // patch) + columns[None, :])[None, None].to(images.device)


def _surrogate(
    kind: Callable[[HeadWrapper], Lime], net: HeadWrapper, images: Tensor, targets: Tensor, patch: int, n_samples: int
) -> ImageMap:
    check_installed("surrogate", "sklearn")
    method, maps, squares = kind(net), [], int(_grid(images, patch).max()) + 1
    few = f"{n_samples} samples are few for {squares} squares: set n_samples={2 * squares}, or a larger patch"
    settings = {"n_samples": n_samples, "perturbations_per_eval": min(100, batch_size(images))}
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        with torch.no_grad(), seeded():
            maps.append(
                method.attribute(image, target=target, feature_mask=_grid(image, patch), **settings).mean(dim=1)
            )
    return ImageMap(torch.cat(maps), warnings=(few,) if n_samples < 2 * squares else ())
