"""A network to look into: a frozen copy, one head of it, its layers by name, and their receptive fields."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.utils.errors import UserError, did_you_mean

BATCH = 250  # images in one forward pass
LAST_CONVOLUTION = "last_convolution"  # in the place of a layer's name
ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh, nn.Sigmoid),  # ReLU6 is a Hardtanh
)


def frozen_copy(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, without gradients of parameters and without in-place layers."""
    copied = copy.deepcopy(net).eval().requires_grad_(False)
    for module in copied.modules():
        if getattr(module, "inplace", False):  # it would overwrite the maps of the layer before
            module.inplace = False  # type: ignore[assignment]
    return copied


@dataclass(frozen=True)
class PathLayer:
    """A layer that ran, with the sizes (H, W) of its input and output; () for a layer without maps."""

    name: str
    module: nn.Module
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]


class HeadWrapper(nn.Module):
    """One head of a network as a single tensor: class scores (B, classes).

    The network answers a tensor, or a dict or tuple of tensors, one per head; `head` is the key or the index. If
    `forward` takes `heads`, the network computes this head alone. A head of one unit scores its second class; its
    negative scores the first. Raises `UserError` for an unknown head.
    """

    def __init__(self, net: nn.Module, head: str | int | None = None) -> None:
        super().__init__()
        self.net, self.head = net, head
        # Both classes of a head of one unit as a layer: rules that see only layers would miss a minus (LRP, DeepLIFT).
        self.both_classes = nn.utils.skip_init(nn.Linear, 1, 2, bias=False)  # draws no random numbers
        self.both_classes.weight = nn.Parameter(torch.tensor([[-1.0], [1.0]]), requires_grad=False)
        self._traced: dict[tuple[int, ...], tuple[int, list[PathLayer]]] = {}  # by image shape
        self.chooses = "heads" in inspect.signature(net.forward).parameters
        self.title = "the answer" if head is None else f"head '{head}'"

    def logits(self, images: Tensor) -> Tensor:
        """Return the head's output (B, units)."""
        answers = self.net(images, heads=[self.head]) if self.chooses and self.head is not None else self.net(images)
        if isinstance(answers, Tensor):
            return answers
        parts: Any = answers if isinstance(answers, Mapping) else dict(enumerate(answers))
        if self.head is None:
            raise UserError(f"the network answers several heads: name one of its heads: {', '.join(map(str, parts))}")
        if self.head not in parts:
            raise UserError(f"there is no head '{self.head}'{did_you_mean(str(self.head), map(str, parts))}")
        logits: Tensor = parts[self.head]
        return logits

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        if logits.ndim != 2:
            raise UserError(f"the network answers {tuple(logits.shape)}, not scores (N, classes)")
        if logits.shape[1] > 1:
            return logits
        both: Tensor = self.both_classes.to(logits.device, logits.dtype)(logits)
        return both

    def classes(self, images: Tensor) -> int:
        """Return the number of classes, found with one of `images` (B, C, H, W)."""
        return self._trace(images)[0]

    def path(self, images: Tensor) -> list[PathLayer]:
        """Return the layers on which the head's output for `images` (B, C, H, W) depends, in running
        order, found by the gradients of one forward pass."""
        return self._trace(images)[1]

    def _trace(self, images: Tensor) -> tuple[int, list[PathLayer]]:
        shape = tuple(images.shape[1:])
        if shape in self._traced:
            return self._traced[shape]
        copied = frozen_copy(self.net)
        ran: list[tuple[PathLayer, Tensor]] = []

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                sizes = (tuple(value.shape[2:]) for value in (inputs[0], output))
                ran.append((PathLayer(name, module, *sizes), output))

            return hook

        for name, layer in leaf_modules(copied).items():
            layer.register_forward_hook(record(name))
        with torch.enable_grad():
            scores = HeadWrapper(copied, self.head)(images[:1].detach().clone().requires_grad_())
            grads = torch.autograd.grad(scores[:, -1].sum(), [output for _, output in ran], allow_unused=True)
        path = [layer for (layer, _), grad in zip(ran, grads, strict=True) if grad is not None]
        self._traced[shape] = scores.shape[1], path
        return self._traced[shape]


def predict_logits(net: nn.Module, heads: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return {head: logits (N, units)} of `images` (N, C, H, W), computed in batches on a frozen copy."""
    net = frozen_copy(net)
    with torch.no_grad():
        parts = [net(batch) for batch in images.split(BATCH)]
    return {head: torch.cat([part[head] for part in parts]) for head in heads}


def leaf_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of every module without submodules, in the order of the network."""
    return {name: module for name, module in net.named_modules() if not list(module.children())}


def layer_named(net: nn.Module, name: str) -> nn.Module:
    """Return the layer `name`. Raises `UserError` if there is none."""
    with suppress(AttributeError):
        layer = net.get_submodule(name)
        if name and not list(layer.children()):
            return layer
    raise UserError(f"there is no layer '{name}'{did_you_mean(name, leaf_modules(net))}")


@contextmanager
def record_activations(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers in the last forward pass, {name: output}, in running order."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs.pop(name, None)
            outputs[name] = output

        return hook

    layers = leaf_modules(net)
    handles = [layers[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def path_to_head(net: HeadWrapper, images: Tensor) -> list[str]:
    """Return the names of the layers on which a head depends (see `HeadWrapper.path`)."""
    return [layer.name for layer in net.path(images)]


def layers_up_to(net: HeadWrapper, images: Tensor, layer: str) -> list[PathLayer]:
    """Return the layers up to the last run of `layer`, included. Raises `UserError` where the head does not depend on
    it."""
    path = net.path(images)
    runs = [place for place, other in enumerate(path, start=1) if other.name == layer]
    if not runs:
        hint = did_you_mean(layer, [other.name for other in path])
        raise UserError(f"{net.title} does not depend on layer '{layer}'{hint}")
    return path[: runs[-1]]


def _is_convolution(layer: nn.Module) -> bool:
    """A 1 x 1 convolution is a dense layer at every pixel and does not count."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def convolutions(net: nn.Module) -> list[str]:
    """Return the names of the convolutions, without 1 x 1 ones."""
    return [name for name, layer in leaf_modules(net).items() if _is_convolution(layer)]


def last_convolution(net: HeadWrapper, images: Tensor) -> str:
    """Return the name of the last convolution before a head. Raises `UserError` if there is none."""
    names = [layer.name for layer in net.path(images) if _is_convolution(layer.module)]
    if not names:
        raise UserError(f"there is no convolution before {net.title}")
    return names[-1]


def default_target_layer(net: HeadWrapper, images: Tensor, target_layer: str | None = None) -> str:
    """Return the name of the layer that CAM methods look at.

    That is `target_layer` if it is given, and "last_convolution" for the last convolution before the head. By default
    it is the first activation of maps after that convolution, as in Grad-CAM's own code (`relu5_3` of VGG), or, without
    one, the convolution. Raises `UserError` for a network without convolution, and for a layer without maps or without
    effect on the head.
    """
    if target_layer not in (None, LAST_CONVOLUTION):
        layer_named(net.net, target_layer)
        if not layers_up_to(net, images, target_layer)[-1].size_out:
            raise UserError(f"layer '{target_layer}' has no maps")
        return target_layer
    convolution = last_convolution(net, images)
    before, path = layers_up_to(net, images, convolution), net.path(images)
    after = path[len(before) :] if target_layer is None else []
    for place, layer in enumerate(after, start=len(before) + 1):
        if isinstance(layer.module, nn.Linear) or not layer.size_out:
            break
        # Hooks see the last run of a module that runs twice; a single place is a gate, or a mean over all places.
        again = any(later.name == layer.name for later in path[place:])
        single = math.prod(layer.size_out) == 1 < math.prod(before[-1].size_out)
        if isinstance(layer.module, ACTIVATIONS) and not again and not single:
            return layer.name
    return convolution


class _ReachedError(Exception):
    """Raised by a hook to stop the forward pass early."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def forward_until(net: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return the output of the layer `name`; later layers and other heads do not run. Differentiable in `images`."""

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        raise _ReachedError(output)

    handle = layer_named(net, name).register_forward_hook(stop)
    branch = name.partition(".")[0]
    try:
        if branch in getattr(net, "head_names", ()):
            net(images, heads=[branch])
        else:
            net(images)
    except _ReachedError as reached:
        return reached.output
    finally:
        handle.remove()
    raise UserError(f"layer '{name}' does not run when the network does")


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive fields of a layer along one axis, in pixels: the first is `size` pixels around `start`, each next
    one lies `step` pixels further."""

    start: float
    step: float
    size: float = 1.0

    def interpolation(self, places: int, pixels: int) -> Tensor:
        """Return the linear map float32 (pixels, places) from the layer to the image. Each place stands at the middle
        of its receptive field; beyond the outermost places values stay constant."""
        distance = (self._places(pixels).clamp(0, places - 1)[:, None] - torch.arange(places)[None, :]).abs()
        return (1 - distance).clamp(min=0)

    def nearest(self, places: int, pixels: int) -> Tensor:
        """Return the nearest place of each pixel, int64 (pixels,)."""
        return self._places(pixels).round().clamp(0, places - 1).long()

    def _places(self, pixels: int) -> Tensor:
        return (torch.arange(pixels) + 0.5 - self.start) / self.step


def receptive_fields(net: HeadWrapper, layer: str, images: Tensor) -> tuple[ReceptiveField, ReceptiveField]:
    """Return the receptive fields of a layer along rows and columns, from the kernels, strides, paddings and dilations
    before it. Raises `UserError` where the head does not depend on the layer."""
    layers, size = layers_up_to(net, images, layer), tuple(images.shape[2:])
    rows, columns = (_field(layers, axis, size) for axis in (0, 1))
    return rows, columns


def _field(layers: list[PathLayer], axis: int, size: tuple[int, ...]) -> ReceptiveField:
    """Return the field of the last of `layers`. Maps are known by their size: on parallel paths, as in residual blocks,
    maps of one size look at the same places. A size that no layer made, as by functional pooling, is taken for the
    maps of the layer before, shrunk without overlap."""
    fields = {size: ReceptiveField(0.5, 1.0)}
    before = size
    for layer in layers:
        if not layer.size_in:
            continue
        if layer.size_in not in fields:
            field, shrunk = fields[before], before[axis] / layer.size_in[axis]
            reach = (shrunk - 1) * field.step
            fields[layer.size_in] = ReceptiveField(field.start + reach / 2, field.step * shrunk, field.size + reach)
        field, module = fields[layer.size_in], layer.module
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            reach = _along(getattr(module, "dilation", 1), axis) * (_along(module.kernel_size, axis) - 1)
            padding: Any = module.padding
            if isinstance(padding, str):
                padding = {"same": reach // 2, "valid": 0}[padding]
            start = field.start + (reach / 2 - _along(padding, axis)) * field.step
            field = ReceptiveField(start, field.step * _along(module.stride, axis), field.size + reach * field.step)
        if layer.size_out:
            fields[layer.size_out], before = field, layer.size_out
    return fields[layers[-1].size_out]


def _along(size: Any, axis: int) -> int:
    return int(size[axis] if isinstance(size, tuple) else size)
