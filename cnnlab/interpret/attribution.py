"""Attribution: which pixels speak for a class. Runs a method on images and checks its maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill, shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.interpret.method_names import method_title
from cnnlab.interpret.network import WITHOUT_GRADIENT, HeadWrapper, batch_size, frozen_copy, placement, receptive_fields
from cnnlab.plots.result import Result
from cnnlab.utils.errors import UserError, one_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DISTRUST = "do not trust it"  # begins a warning about a sum
COUNTS = ("n_steps", "n_samples", "nt_samples")  # settings of methods
MAX_GAP = 0.05  # between a map's sum and the score difference, relative


@dataclass(frozen=True)
class LayerMap:
    """Maps float32 (N, h, w) at the resolution of the layer of that name, and why they may be wrong."""

    layer: str
    values: Tensor
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageMap:
    """Maps float32 (N, H, W), and why they may be wrong. With `baselines` float32 (R, C, H, W) they sum to the class
    score minus the mean score of these, which is checked."""

    values: Tensor
    baselines: Tensor | None = None
    warnings: tuple[str, ...] = ()


# (head, images float32 (N, C, H, W), targets int64 (N,)) -> maps float32 (N, H, W), the same with more facts, or maps
# of a layer, which are then interpolated. The head is of a frozen copy: no method needs to restore anything.
Method = Callable[[HeadWrapper, Tensor, Tensor], Tensor | ImageMap | LayerMap]


def completeness_gap(net: HeadWrapper, images: Tensor, targets: Tensor, maps: Tensor, baselines: Tensor) -> Tensor:
    """Return the relative difference between each map's sum and the score difference of image and baselines, (N,)."""
    with torch.no_grad():
        scores = net(images).gather(1, targets[:, None])[:, 0]
        expected = scores - net(baselines).mean(dim=0)[targets]
    least = (1e-5 * scores.abs()).clamp(min=1e-6)  # a smaller difference is lost in rounding
    gap: Tensor = (maps.sum(dim=(1, 2)) - expected).abs() / torch.maximum(expected.abs(), least)
    return gap


def bind_baselines(method: Method, baselines: Callable[[], Tensor]) -> Method:
    """Return the method with `baselines()`, images float32 (R, C, H, W), if it takes `baselines` and has none."""
    parameter = inspect.signature(method).parameters.get("baselines")
    return partial(method, baselines=baselines()) if parameter and parameter.default is None else method  # type: ignore[call-arg]


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """The evidence for a class in each of N images.

    `maps` float32 (N, H, W) as the method returns them, for `images` float32 (N, C, H, W) and `targets` int64 (N,).
    `classes` are the head's class names, if known; `layer_map` is the coarse map of a method that looks at a layer;
    `warnings` say why the maps may be wrong; `gaps` (N,) are the relative differences between each map's sum and the
    score difference, for methods that promise this sum.
    """

    maps: Tensor
    images: Tensor
    targets: Tensor
    method: str
    head: str | int | None = None
    classes: Sequence[str] | None = None
    layer_map: LayerMap | None = None
    warnings: tuple[str, ...] = ()
    gaps: Tensor | None = None

    def __repr__(self) -> str:
        lines = [f"Attribution({self.method}, head {self.head}, {len(self.maps)} images)", *self.warnings]
        return "\n! ".join(lines)

    def plot(self) -> plots.Figure:
        """Draw a row per image: the image, its heatmap, and both in one."""
        tiles, captions = [], []
        head = "" if self.head is None else f"{self.head}: "
        shown, how = displayable(self.images)
        for image, values, target in zip(shown, self.maps.numpy(), self.targets.tolist(), strict=True):
            picture = (image * 255).round().to(torch.uint8).numpy()
            picture = np.broadcast_to(picture if len(picture) == 3 else picture[:1], (3, *picture.shape[1:]))
            tiles += [picture, plots.heat(values), plots.overlay(picture, values)]
            answer = f"{head}{self.classes[target] if self.classes else target}"
            captions += [answer, f"largest {np.abs(values).max():.3g}", "over the image"]
        title = [f"Evidence by {method_title(self.method)}", *filter(None, [how])]
        title += [fill(text, 60) for text in self.warnings]
        return plots.images(np.stack(tiles), captions, "\n".join(title), columns=3, picture_width=1.7)

    def arrays(self) -> dict[str, Tensor]:
        layer = {} if self.layer_map is None else {"layer_map": self.layer_map.values}
        return {"maps": self.maps, "images": self.images, "targets": self.targets, **layer}

    def metadata(self) -> dict[str, Any]:
        layer = None if self.layer_map is None else self.layer_map.layer
        classes = None if self.classes is None else list(self.classes)
        known = {"method": self.method, "head": self.head, "classes": classes, "layer": layer}
        return {**known, "warnings": list(self.warnings)}


def attribute(
    net: nn.Module,
    images: Tensor,
    target: Tensor | int | str,
    method: Method,
    head: str | int | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> Attribution:
    """Return the evidence for a class of a head in images.

    Args:
        net: Any network that answers a tensor of scores, or a dict or tuple of them. It is not changed.
        images: Float (N, C, H, W). The result of an image does not depend on the others.
        target: "predicted", the number of a class, or numbers int64 (N,).
        method: See `Method`.
        head: The key or index of the head in the network's output.
        classes: The head's class names.
        name: The method's name.

    Raises:
        UserError: For maps of another shape than (N, H, W), or with values that are not finite.
    """
    with torch.inference_mode(False):
        return attribute_head(HeadWrapper(frozen_copy(net), head), images.clone(), target, method, classes, name)


def attribute_head(
    wrapper: HeadWrapper,
    images: Tensor,
    target: Tensor | int | str,
    method: Method,
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> Attribution:
    """Return the same as `attribute`, for a frozen head that the caller keeps: faster for one image after another. The
    method must not change the head; the methods of `conf/method/` do not."""
    targets, warnings = _targets(wrapper, images, target), list[str]()
    if wrapper.unsteady(images):
        warnings.append(f"{wrapper.unsteady(images)}: so does its map")
    name = name or str(getattr(method, "__name__", "method"))
    for setting, value in getattr(method, "keywords", {}).items():
        if setting in COUNTS and not (isinstance(value, int | np.integer) and value >= 1):
            raise UserError(f"{name}: {setting}={value} is not a whole number of at least 1")
        if setting == "stdevs" and not (isinstance(value, float | int | np.number) and 0 <= value < math.inf):
            raise UserError(f"{name}: stdevs={value} is not in 0..inf")
    maps, layer_maps, gaps = [], [], []
    count = batch_size(images)
    for batch, batch_targets in zip(images.split(count), targets.split(count), strict=True):
        try:
            result = method(wrapper, batch.clone(), batch_targets.clone())  # which it may change
        except RuntimeError as error:  # PyTorch's or Captum's
            cut = any(text in str(error) for text in ("does not require grad", "not have been used in the graph"))
            reason = "no gradient reaches the image, as under no_grad" if cut else shorten(one_line(error), 160)
            other = WITHOUT_GRADIENT if cut else "choose another method"
            raise UserError(f"{name} cannot look into this network: {reason}; {other}") from error
        if isinstance(result, LayerMap):
            layer_maps.append(result)
            warnings += [*result.warnings, placement(wrapper, result.layer, batch)[2]]
            result = to_image(result, wrapper, batch)
        if isinstance(result, ImageMap):
            if result.baselines is not None:
                gaps.append(completeness_gap(wrapper, batch, batch_targets, result.values, result.baselines))
            warnings += result.warnings
            result = result.values
        if not isinstance(result, Tensor) or result.shape != (len(batch), *batch.shape[2:]):
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise UserError(f"{name}: maps of {shape} are not a tensor (N, H, W) of {tuple(batch.shape)}")
        if not torch.isfinite(result).all():  # a metric would leave such maps out, and flatter the method
            raise UserError(f"{name}: maps hold values that are not finite")
        maps.append(_plain(result))
    if not any(part.any() for part in maps):
        warnings.append("all maps are 0: the method finds no evidence for these classes, or cannot see it")
    values = [_plain(part.values) for part in layer_maps]
    return Attribution(
        maps=torch.cat(maps),
        images=_plain(images).clone(),
        targets=targets.cpu(),
        method=name,
        head=wrapper.head,
        classes=classes,
        layer_map=LayerMap(layer_maps[0].layer, torch.cat(values)) if values else None,
        gaps=torch.cat(gaps).cpu() if gaps else None,
        warnings=tuple(dict.fromkeys(filter(None, [*(_gap_warnings(torch.cat(gaps)) if gaps else ()), *warnings]))),
    )


def _plain(values: Tensor) -> Tensor:
    """Return values on the CPU, whole numbers and those of 16 bits in float32."""
    values = values.detach().cpu()
    small = values.dtype in (torch.bfloat16, torch.float16) or not values.is_floating_point()
    return values.float() if small else values


def _gap_warnings(gaps: Tensor) -> tuple[str, ...]:
    """Return a warning where sums of maps miss the score difference by more than MAX_GAP."""
    wrong = gaps[~(gaps <= MAX_GAP)]
    if not len(wrong):
        return ()
    share = f"{len(wrong)} of {len(gaps)} images the map's sum misses the score difference by more than {MAX_GAP:.0%}"
    return (f"{DISTRUST}: on {share} (median {wrong.median().item():.0%})",)


def displayable(images: Tensor) -> tuple[Tensor, str]:
    """Return images (N, C, H, W) in [0, 1], and how they were converted ("" if they were not): values in [-1, 1] are
    shifted, ImageNet's normalisation is undone, others are stretched from lowest to highest."""
    images = images.float()
    low, high = images.aminmax()
    if 0 <= low <= high <= 1:
        return images, ""
    if -1 <= low <= high <= 1:
        return (images + 1) / 2, "colours: images in [-1, 1] shifted to [0, 1]"
    if images.shape[1] == 3:
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        restored = images * deviation + mean
        if -0.01 <= restored.min() <= restored.max() <= 1.01:
            return restored.clamp(0, 1), "colours: ImageNet's normalisation undone"
    return (images - low) / (high - low).clamp(min=1e-12), "colours: stretched from the lowest to the highest value"


def _targets(net: HeadWrapper, images: Tensor, target: Tensor | int | str) -> Tensor:
    """Return the classes int64 (N,). Raises `UserError` for one that the head does not have."""
    if images.ndim != 4 or not len(images):
        raise UserError(f"images of {tuple(images.shape)} are not (N, C, H, W)")
    if not torch.isfinite(images).all():
        raise UserError("images hold values that are not finite")
    if isinstance(target, str):
        if target != "predicted":
            raise UserError(f"target='{target}' is neither 'predicted' nor the number of a class")
        with torch.no_grad():
            return torch.cat([net(batch).argmax(dim=1) for batch in images.split(batch_size(images))])
    count = net.classes(images)
    try:
        targets = torch.as_tensor(target, device=images.device)
    except (TypeError, ValueError, RuntimeError):  # as for None
        targets = torch.empty(())
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape not in ((), (1,), (len(images),)):
        raise UserError(f"target={target!s:.60}: give a class, or one whole number for each of {len(images)} images")
    targets = targets.long().expand(len(images))
    if not ((targets >= 0) & (targets < count)).all():
        raise UserError(f"target={target}: the classes are 0..{count - 1}")
    return targets


def to_image(layer_map: LayerMap, net: HeadWrapper, images: Tensor) -> Tensor:
    """Return a layer's maps at the size of `images` (N, C, H, W), float32 (N, H, W), by bilinear interpolation between
    the centres of the layer's receptive fields."""
    rows, columns = receptive_fields(net, layer_map.layer, images)
    values, (height, width) = layer_map.values, images.shape[2:]
    down = rows.interpolation(values.shape[1], height).to(values)
    across = columns.interpolation(values.shape[2], width).to(values)
    return down @ values @ across.T
