"""A network under examination: a copy of it, one head of it, its layers by name, and where they look."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError, did_you_mean


def frozen_copy(net: nn.Module) -> nn.Module:
    """A copy of the network in evaluation mode, whose parameters ask for no gradient and whose layers do not work in
    place: whatever is done to it, the network itself is left as it was."""
    copied = copy.deepcopy(net).eval().requires_grad_(False)
    for module in copied.modules():
        if getattr(module, "inplace", False):  # the maps of the layer before it would be gone
            module.inplace = False  # type: ignore[assignment]
    return copied


@dataclass(frozen=True)
class PathLayer:
    """A layer that ran: its name, itself, and the sizes (H, W) of its input and output, () where they are no maps."""

    name: str
    module: nn.Module
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]


class HeadWrapper(nn.Module):
    """One head of a network as a single tensor: a score for each class, float32 (B, classes).

    The network answers a tensor, or a dict or a tuple with one for each head, of which `head` is the key or the place;
    one whose `forward` takes `heads` is asked for this head alone. A head of one unit is the evidence for its second
    class; the score of the first is its negative. Raises `UserError` where there is no such head.
    """

    def __init__(self, net: nn.Module, head: str | int | None = None) -> None:
        super().__init__()
        self.net, self.head = net, head
        # Both classes of a head of one unit as a layer: rules that see layers alone would miss a minus (LRP, DeepLIFT).
        self.both_classes = nn.utils.skip_init(nn.Linear, 1, 2, bias=False)  # draws no random numbers
        self.both_classes.weight = nn.Parameter(torch.tensor([[-1.0], [1.0]]), requires_grad=False)
        # Of an image's shape: how many classes the head has, and the layers before it.
        self._traced: dict[tuple[int, ...], tuple[int, list[PathLayer]]] = {}
        self.chooses = "heads" in inspect.signature(net.forward).parameters
        self.title = "the answer" if head is None else f"head '{head}'"

    def logits(self, images: Tensor) -> Tensor:
        """What the network says for this head, (B, units)."""
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
        """How many classes the head has, asked with one of `images` (B, C, H, W) and only once for each shape."""
        return self._trace(images)[0]

    def path(self, images: Tensor) -> list[PathLayer]:
        """The layers on which the head's answer to `images` (B, C, H, W) depends, in the order they run, whatever they
        are called: found by running a copy of the network on one image and asking for gradients, once for images of one
        shape."""
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
            answer = HeadWrapper(copied, self.head)(images[:1].detach().clone().requires_grad_())
            grads = torch.autograd.grad(answer[:, -1].sum(), [output for _, output in ran], allow_unused=True)
        path = [layer for (layer, _), slope in zip(ran, grads, strict=True) if slope is not None]
        self._traced[shape] = answer.shape[1], path
        return self._traced[shape]


def leaf_modules(net: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of every layer that has no layers inside, in the order of the network."""
    return {name: module for name, module in net.named_modules() if not list(module.children())}


def layer_named(net: nn.Module, name: str) -> nn.Module:
    """The layer of that name; `UserError` with the nearest or all names where there is none."""
    with suppress(AttributeError):
        layer = net.get_submodule(name)
        if name and not list(layer.children()):
            return layer
    raise UserError(f"there is no layer '{name}'{did_you_mean(name, leaf_modules(net))}")


@contextmanager
def record_activations(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within, what the layers of those names answer in the network's last forward pass, {name: output}, in the order
    they ran. The network is left as it was."""
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
    """The names of the layers on which a head's answer to `images` (B, C, H, W) depends, in the order they run."""
    return [layer.name for layer in net.path(images)]


def layers_up_to(net: HeadWrapper, images: Tensor, layer: str) -> list[PathLayer]:
    """The layers up to and with the last run of the one of that name, on the way to a head's answer to `images`
    (B, C, H, W). Raises `UserError` where the head does not depend on it."""
    path = net.path(images)
    runs = [place for place, found in enumerate(path, start=1) if found.name == layer]
    if not runs:
        raise UserError(
            f"{net.title} does not depend on layer '{layer}'{did_you_mean(layer, [one.name for one in path])}"
        )
    return path[: runs[-1]]


def last_convolution(net: HeadWrapper, images: Tensor) -> str:
    """The name of the last convolution before a head. A 1 x 1 convolution, a dense layer at every pixel, does
    not count. Raises `UserError` where there is none."""
    names = [
        layer.name
        for layer in net.path(images)
        if isinstance(layer.module, nn.Conv2d) and layer.module.kernel_size != (1, 1)
    ]
    if not names:
        raise UserError(f"there is no convolution before {net.title}")
    return names[-1]


_ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh, nn.Sigmoid),  # ReLU6 is a Hardtanh
)


def default_target_layer(net: HeadWrapper, images: Tensor, layer: str | None = None) -> str:
    """The name of the layer at whose maps the methods of the CAM family look, asked with `images` (B, C, H, W).

    That is `layer`, or, where it is None, the next activation of maps (ReLU or its kin, as a module) that runs after
    the last convolution before the head, and that convolution where there is none. So do Grad-CAM's own code
    (`relu5_3` of VGG) and Keras, where a convolution is given its activation. "last_convolution" is the convolution
    itself. Raises `UserError` where there is no convolution, and for a layer that the head does not depend on or that
    answers no maps.
    """
    if layer not in (None, "last_convolution"):
        layer_named(net.net, layer)
        if not layers_up_to(net, images, layer)[-1].size_out:
            raise UserError(f"layer '{layer}' answers no maps")
        return layer
    convolution = last_convolution(net, images)
    until, path = layers_up_to(net, images, convolution), net.path(images)
    for place, found in enumerate(path[len(until) :] if layer is None else [], start=len(until) + 1):
        if isinstance(found.module, nn.Linear) or not found.size_out:
            break
        # Of a module that runs several times hooks see the last; a single place is a gate, or a mean over all places.
        again = any(later.name == found.name for later in path[place:])
        single = math.prod(found.size_out) == 1 < math.prod(until[-1].size_out)
        if isinstance(found.module, _ACTIVATIONS) and not again and not single:
            return found.name
    return convolution


class _ReachedError(Exception):
    """Stops a forward pass at the layer that was asked for."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def forward_until(net: nn.Module, name: str, images: Tensor) -> Tensor:
    """The output of the layer of that name, without running what comes after it; where the layer lies in the
    branch of one head, without the branches of others. Differentiable in `images`."""

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
    """Where a layer's places look along one axis: the first at the `size` pixels around `start`, in pixels from the
    image's edge, each next one `step` pixels on."""

    start: float
    step: float
    size: float = 1.0

    def interpolation(self, places: int, pixels: int) -> Tensor:
        """The linear map, float32 (pixels, places), from a layer's row to the image's: each of the layer's places
        stands at the middle of what it sees, so that a map is neither shifted nor, after a valid convolution,
        stretched; beyond the outermost places it stays as it is there."""
        distance = (self._places(pixels).clamp(0, places - 1)[:, None] - torch.arange(places)[None, :]).abs()
        return (1 - distance).clamp(min=0)

    def nearest(self, places: int, pixels: int) -> Tensor:
        """Which of the layer's places each pixel lies nearest to, int64 (pixels,)."""
        return self._places(pixels).round().clamp(0, places - 1).long()

    def _places(self, pixels: int) -> Tensor:
        return (torch.arange(pixels) + 0.5 - self.start) / self.step


def receptive_fields(net: HeadWrapper, layer: str, images: Tensor) -> tuple[ReceptiveField, ReceptiveField]:
    """Where the places of a layer before a head look, along the rows and the columns of the image: from the kernels,
    strides, paddings and dilations of the convolutions and poolings up to it. Raises `UserError` where the head
    does not depend on the layer."""
    until, size = layers_up_to(net, images, layer), tuple(images.shape[2:])
    rows, columns = (_field(until, axis, size) for axis in (0, 1))
    return rows, columns


def _field(layers: list[PathLayer], axis: int, size: tuple[int, ...]) -> ReceptiveField:
    """The field of the last of `layers`. What a layer sees is known by its size: where a network has parallel ways, as
    residual blocks do, maps of one size look at the same places. A size that no layer made, as a pooling that is no
    module, is taken for maps of the layer before, shrunk without overlap."""
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
