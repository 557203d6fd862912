"""Where in an image the evidence for a class lies: Grad-CAM and other attribution methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.errors import UserError
from cnnlab.explain.method_names import method_title
from cnnlab.explain.network import HeadWrapper, frozen_copy, receptive_fields
from cnnlab.result import Result

if TYPE_CHECKING:
    from cnnlab.plots import Figure

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 250  # images of which the attributions are computed at once


@dataclass(frozen=True)
class LayerMap:
    """Raw maps float32 (N, h, w) in the resolution of the layer of that name."""

    layer: str
    values: Tensor


# (one head of a network, images float32 (N, C, H, W), targets int64 (N,)) -> maps float32 (N, H, W), or those of a
# layer, which are then brought to the image. The network answers class scores (N, classes); it is a copy that asks for
# no gradients: no method needs to put anything back.
Method = Callable[[HeadWrapper, Tensor, Tensor], Tensor | LayerMap]


MOST_MISSED = 0.05  # of the score difference, by which the sum of a map may miss it


def adds_up(baselines: Callable[..., Tensor]) -> Callable[[Method], Method]:
    """Mark a method whose maps add up to the class score less that of its baselines, which `baselines` (images, and the
    method's settings) gives as float32 (R, C, H, W); of several baselines the mean score counts."""

    def mark(method: Method) -> Method:
        method.baselines = baselines  # type: ignore[attr-defined]
        return method

    return mark


def missed_share(net: HeadWrapper, images: Tensor, targets: Tensor, maps: Tensor, baselines: Tensor) -> Tensor:
    """Return by how much of the score difference between each image and the baselines the sum of its map misses it,
    float32 (N,)."""
    with torch.no_grad():
        scores = net(images).gather(1, targets[:, None])[:, 0]
        expected = scores - net(baselines).mean(dim=0)[targets]
    missed: Tensor = (maps.sum(dim=(1, 2)) - expected).abs() / expected.abs().clamp(min=1e-6)
    return missed


def _unwrapped(method: Any) -> tuple[Any, dict[str, Any]]:
    """Return the function within `functools.partial`, and its settings."""
    settings: dict[str, Any] = {}
    while isinstance(method, partial):
        method, settings = method.func, {**method.keywords, **settings}
    return method, settings


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """The evidence for a class in each of N images: `maps` float32 (N, H, W), raw, as the method gives them; `images`
    float32 (N, C, H, W) and `targets` int64 (N,), which were asked for; of a method that looks at a layer its name and
    raw maps, `layer_map`. `classes` are the head's names, where they are known."""

    maps: Tensor
    images: Tensor
    targets: Tensor
    method: str
    head: str | int | None = None
    classes: Sequence[str] | None = None
    layer_map: LayerMap | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [f"Attribution({self.method}, head {self.head}, {len(self.maps)} images)", *self.warnings]
        return "\n! ".join(lines)

    def plot(self) -> Figure:
        """A row an image: the image, its heatmap, and both in one."""
        from cnnlab import plots

        tiles, captions = [], []
        head = "" if self.head is None else f"{self.head}: "
        shown, how = displayable(self.images)
        for image, values, target in zip(shown, self.maps.numpy(), self.targets.tolist(), strict=True):
            picture = (image * 255).round().to(torch.uint8).numpy()
            picture = np.broadcast_to(picture if len(picture) == 3 else picture[:1], (3, *picture.shape[1:]))
            tiles += [picture, plots.heat(values), plots.overlay(picture, values)]
            answer = f"{head}{self.classes[target] if self.classes else target}"
            captions += [answer, f"largest {np.abs(values).max():.3g}", "over the image"]
        title = "\n".join(
            [
                f"Evidence by {method_title(self.method)}",
                *filter(None, [how]),
                *(fill(text, 60) for text in self.warnings),
            ]
        )
        return plots.images(np.stack(tiles), captions, title, columns=3, picture_width=1.7)

    def arrays(self) -> dict[str, Tensor]:
        layer = {} if self.layer_map is None else {"layer_map": self.layer_map.values}
        return {"maps": self.maps, "images": self.images, "targets": self.targets, **layer}

    def facts(self) -> dict[str, Any]:
        layer = None if self.layer_map is None else self.layer_map.layer
        classes = None if self.classes is None else list(self.classes)
        facts = {"method": self.method, "head": self.head, "classes": classes, "layer": layer}
        return {**facts, "warnings": list(self.warnings)}


def attribute(
    net: nn.Module,
    images: Tensor,
    target: Tensor | int | str,
    method: Method,
    head: str | int | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> Attribution:
    """The evidence for a class of a head in `images` float32 (N, C, H, W) in [0, 1]. `target` is the class: one number,
    numbers int64 (N,), or "predicted".

    Any network that answers a tensor of scores, or a dict or tuple of them, of which `head` is the key or the place. It
    is left as it was. The result of an image does not depend on the others. Raises `UserError` for maps of another
    shape than (N, H, W), or with values that are not finite.
    """
    return attribute_head(HeadWrapper(frozen_copy(net), head), images, target, method, classes, name)


def attribute_head(
    wrapper: HeadWrapper,
    images: Tensor,
    target: Tensor | int | str,
    method: Method,
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> Attribution:
    """As `attribute`, of a copy that the caller keeps, sooner where one image follows another: the method must leave it
    as it was, as those of `conf/method/` do."""
    targets = _targets(wrapper, images, target)
    name = name or str(getattr(method, "__name__", "method"))
    function, settings = _unwrapped(method)
    maps, layer_maps, missed = [], [], []
    for batch, wanted in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        found = method(wrapper, batch, wanted)
        if isinstance(found, LayerMap):
            layer_maps.append(found)
            found = to_image(found, wrapper, batch)
        if not isinstance(found, Tensor) or found.shape != (len(batch), *batch.shape[2:]):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{name}: maps of {shape} are not a tensor (N, H, W) of {tuple(batch.shape)}")
        if not torch.isfinite(found).all():  # a score would leave such maps out, and flatter the method
            raise UserError(f"{name}: maps hold values that are not finite")
        if hasattr(function, "baselines"):
            missed.append(missed_share(wrapper, batch, wanted, found, function.baselines(batch, **settings)))
        maps.append(found.detach().cpu())
    layer_map = (
        LayerMap(layer_maps[0].layer, torch.cat([part.values.detach().cpu() for part in layer_maps]))
        if layer_maps
        else None
    )
    return Attribution(
        torch.cat(maps), images.detach().cpu(), targets.cpu(), name, wrapper.head, classes, layer_map,
        _warnings_of(torch.cat(missed)) if missed else (),
    )  # fmt: skip


def _warnings_of(missed: Tensor) -> tuple[str, ...]:
    """Warn where the sums of maps miss the score difference by more than MOST_MISSED; `missed` as of `missed_share`."""
    wrong = missed[~(missed <= MOST_MISSED)]
    if not len(wrong):
        return ()
    if len(missed) == 1:
        return (f"do not trust it: the map's sum misses the score difference by {_times(wrong[0].item())}",)
    return (
        f"do not trust it: on {len(wrong)} of {len(missed)} images the map's sum misses the score difference by more "
        f"than {MOST_MISSED:.0%} (median {_times(wrong.median().item())})",
    )


def _times(share: float) -> str:
    """A share in words: "57.3%" or "15 times the difference"."""
    if not math.isfinite(share):
        return "more than any number"
    return f"{share:.1%}" if share < 2 else f"{share:,.0f} times the difference"


def displayable(images: Tensor) -> tuple[Tensor, str]:
    """Return images (N, C, H, W) in [0, 1], and how they were brought there ("" where they were). One rule serves all:
    values in [-1, 1] are shifted, ImageNet's normalisation is undone, others are stretched from lowest to highest."""
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
    """The classes int64 (N,) that `target` says. Raises `UserError` for one that the head does not have."""
    if images.ndim != 4 or not len(images):
        raise UserError(f"images of {tuple(images.shape)} are not (N, C, H, W)")
    if isinstance(target, str):
        if target != "predicted":
            raise UserError(f"target='{target}' is neither 'predicted' nor the number of a class")
        with torch.no_grad():
            return torch.cat([net(batch).argmax(dim=1) for batch in images.split(BATCH)])
    count = net.classes(images)
    targets = torch.as_tensor(target, dtype=torch.int64, device=images.device).expand(len(images))
    if not ((targets >= 0) & (targets < count)).all():
        raise UserError(f"target={target}: the classes are 0..{count - 1}")
    return targets


def to_image(layer_map: LayerMap, net: HeadWrapper, images: Tensor) -> Tensor:
    """Maps of a layer, brought to the size of `images` (N, C, H, W) by bilinear interpolation between the places where
    the layer looks, float32 (N, H, W)."""
    rows, columns = receptive_fields(net, layer_map.layer, images)
    values, (height, width) = layer_map.values, images.shape[2:]
    down = rows.interpolation(values.shape[1], height).to(values)
    across = columns.interpolation(values.shape[2], width).to(values)
    return down @ values @ across.T
