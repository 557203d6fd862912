"""A network to look into: a frozen copy, one head of it, its layers by name, and where they look in the image."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlab.utils.errors import UserError, did_you_mean, one_line

BATCH = 250  # small images in one forward pass
LAST_CONVOLUTION = "last_convolution"  # in the place of a layer's name
AFFINE = (nn.modules.batchnorm._BatchNorm, nn.Dropout, nn.Dropout2d, nn.Identity)  # may follow an activation
MOST_PROBED = 16  # images that tell whether a network answers probabilities
WITHOUT_GRADIENT = "choose occlusion or feature_ablation"
PLACES, NOISES = 5, 4  # of a layer, and images for each, to measure where it looks


def batch_size(images: Tensor) -> int:
    """Return how many images (B, C, H, W) go through a network at once: 250 up to 64 x 64 pixels, fewer of larger."""
    return max(1, min(BATCH, BATCH * 64 * 64 // math.prod(images.shape[2:])))


def frozen_copy(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, without gradients of parameters, in-place layers and compilation. Raises
    `UserError` for a network that cannot be copied, as where a function replaces `forward` and keeps the original."""
    net = getattr(net, "_orig_mod", net)  # of torch.compile
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in kept if value.grad_fn is not None}  # as of weight_norm
    with torch.inference_mode(False), torch.no_grad():
        try:
            copied = copy.deepcopy(net, memo)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"the network cannot be copied ({one_line(error)}); clear the tensors it keeps") from error
        copied.eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(False)
    for name, module in list(copied.named_modules()):
        if name and hasattr(module, "_orig_mod"):
            copied.set_submodule(name, module._orig_mod)
    for module in copied.modules():
        module._compiled_call_impl = None
        replaced = vars(module).get("forward")
        if isinstance(replaced, FunctionType):
            method: Any = inspect.unwrap(replaced, stop=lambda function: hasattr(function, "__self__"))
            compiled = hasattr(replaced, "_torchdynamo_orig_callable")  # by torch.compile(net.forward)
            if not compiled or getattr(method, "__func__", None) is not type(module).forward:
                raise UserError("a function replaces the network's forward and keeps the original: give a subclass")
            del module.forward
        if getattr(module, "inplace", False):  # it would overwrite the maps of the layer before
            module.inplace = False
    return copied


@dataclass(frozen=True)
class LayerRun:
    """A run of a module, with the sizes (H, W) of the maps that go in and come out; () for other tensors.

    `alias` names the earlier run that made its output, if it is a block. The name "pool:input" stands for what goes
    into the module `pool`, where no module made it."""

    name: str
    module: nn.Module
    size_in: tuple[int, ...]
    size_out: tuple[int, ...]
    alias: str = ""


class HeadWrapper(nn.Module):
    """One head of a network as a single tensor: class scores (B, classes).

    The network answers a tensor, or a dict, dataclass or tuple of tensors, one per head; `head` is the key or the
    index. If `forward` takes `heads`, the network computes this head alone. A head of one unit scores its second class;
    its negative scores the first. Scores of places, (B, classes, H, W), are averaged. The sigmoid of one unit is
    undone; softmax and the sigmoids of several units are not. Raises `UserError` for an unknown head.
    """

    def __init__(self, net: nn.Module, head: str | int | None = None) -> None:
        super().__init__()
        self.net, self.head = net, head
        # Both classes of a head of one unit as a layer: rules that see only layers would miss a minus (LRP, DeepLIFT).
        self.both_classes = nn.utils.skip_init(nn.Linear, 1, 2, bias=False)  # draws no random numbers
        self.both_classes.weight = nn.Parameter(torch.tensor([[-1.0], [1.0]]), requires_grad=False)
        self._traced: dict[tuple[int, ...], list[LayerRun]] = {}  # by image shape
        self._fields: dict[tuple[Any, ...], tuple[ReceptiveField, ReceptiveField, str]] = {}
        self._bypassed: dict[tuple[Any, ...], bool] = {}
        self._classes = 0
        self.ends_in: str | None = None  # see `SigmoidRecorder.last_function`; None: not known yet
        self._unsteady: str | None = None
        self.chooses = (
            not isinstance(net, torch.jit.ScriptModule) and "heads" in inspect.signature(net.forward).parameters
        )
        self.title = "the answer" if head is None else f"head '{head}'"

    def logits(self, images: Tensor) -> Tensor:
        """Return the head's output (B, units): scores, or the probabilities of several classes."""
        if self.ends_in is None:
            with torch.no_grad(), SigmoidRecorder() as recorder:
                self.ends_in = recorder.last_function(self.output(images[:MOST_PROBED]))
        with SigmoidInputs() as sigmoids:
            answers = self.output(images)
        if answers.ndim not in (2, 4) or not answers.is_floating_point():
            raise UserError(
                f"the network answers {tuple(answers.shape)}, not scores (N, classes) or (N, classes, H, W)"
            )
        if self.ends_in != "sigmoid":
            return mean_of_places(answers)
        logits = sigmoids.of(answers)
        return torch.logit(mean_of_places(answers), eps=1e-6) if logits is None else mean_of_places(logits)

    def output(self, images: Tensor) -> Tensor:
        """Return what the network answers for the head, as it is."""
        answers = self.net(images, heads=[self.head]) if self.chooses and self.head is not None else self.net(images)
        if isinstance(answers, Tensor):
            if self.head not in (None, 0, -1) and not self.chooses:
                raise UserError(f"there is no head '{self.head}': the network answers one tensor, leave head out")
            return answers
        parts = parts_of(answers)
        last = isinstance(self.head, int) and self.head < 0 and isinstance(answers, Sequence)
        head = len(answers) + self.head if last else self.head  # type: ignore[operator]
        if head is None and len(parts) == 1:
            head = next(iter(parts))
        if head is None:
            raise UserError(f"the network answers several heads: name one of its heads: {', '.join(map(str, parts))}")
        if head not in parts:
            raise UserError(f"there is no head '{self.head}'{did_you_mean(str(self.head), map(str, parts))}")
        return parts[head]

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.logits(images))

    def scores(self, logits: Tensor) -> Tensor:
        """Return class scores (B, classes) from the head's output."""
        if logits.shape[1] > 1:
            return logits
        both: Tensor = self.both_classes.to(logits.device, logits.dtype)(logits)
        return both + both.new_tensor([1.0, 0.0]) if self.ends_in == "probability" else both

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, classes)."""
        logits = self.logits(images)
        scores = self.scores(logits)
        if self.ends_in in ("probability", "probabilities"):
            return scores
        return (scores / 2 if logits.shape[1] == 1 else scores).softmax(dim=1)  # of -z/2 and z/2: the sigmoid of z

    def classes(self, images: Tensor) -> int:
        """Return the number of classes, found with one of `images` (B, C, H, W)."""
        if not self._classes:
            with torch.no_grad():
                self._classes = self(images[:1]).shape[1]
        return self._classes

    def unsteady(self, images: Tensor) -> str:
        """Return why the scores of an image are not a function of it, or "": they differ each time, as by dropout in
        every mode, or depend on the others of its batch, as by BatchNorm without running statistics. Found with one of
        `images` (B, C, H, W) beside a darker and a brighter one. Raises `UserError` for NaN or infinity."""
        if self._unsteady is None:
            image, beside = images[:1], list[Tensor]()
            with torch.no_grad():
                alone, again = self(image), self(image)
                for other in (images[-1:] / 2, 1.5 * image):
                    with suppress(*(() if len(images) > 1 else (RuntimeError,))):  # it may take one image at a time
                        beside.append(self(torch.cat([image, other.to(image.dtype)]))[:1])
            if not torch.isfinite(alone).all():
                raise UserError(f"{self.title}: the network's scores are not finite")
            near = 0.02 if alone.element_size() < 4 else 1e-4
            differ, *mixed = (
                not torch.allclose(other, alone, rtol=near, atol=near * alone.abs().max().item())
                for other in (again, *beside)
            )
            reason = "differ each time" if differ else "depend on the other images of the batch" if any(mixed) else ""
            self._unsteady = f"the scores of an image {reason}" if reason else ""
        return self._unsteady

    def duplicate(self) -> HeadWrapper:
        """Return the same head of a copy of the network, which shares what is known of its layers."""
        return copy.deepcopy(self, {id(known): known for known in (self._traced, self._fields, self._bypassed)})

    def path(self, images: Tensor) -> list[LayerRun]:
        """Return the runs of modules on which the head's output for `images` (B, C, H, W) depends, in the order in
        which they end, found by the gradients of one forward pass."""
        shape = tuple(images.shape[1:])
        if shape not in self._traced:
            self._traced[shape] = self._trace(images[:1].detach().clone().requires_grad_())
        return self._traced[shape]

    def _trace(self, image: Tensor) -> list[LayerRun]:
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.net.modules()):
            raise UserError(f"nothing is known of the layers of a scripted network: {WITHOUT_GRADIENT}")
        copied, size = frozen_copy(self.net), tuple(image.shape[2:])
        runs: list[tuple[LayerRun, Tensor]] = []
        versions: list[int] = []  # of the outputs: a change in place makes another output

        def maker(value: Tensor) -> str:
            made = zip(runs, versions, strict=True)
            same = (run.name for (run, output), then in made if output is value and then == value._version)
            return "image" if value is image else next(same, "")

        def keep(run: LayerRun, output: Tensor) -> None:
            runs.append((run, output))
            versions.append(output._version)

        def before(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                value = inputs[0] if inputs else None
                if isinstance(value, Tensor) and value.requires_grad and not maker(value):
                    here = _size(as_maps(value, size))
                    keep(LayerRun(f"{name}:input", module, here, here), value)

            return hook

        def after(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if isinstance(output, Tensor) and output.requires_grad:
                    sizes = [_size(as_maps(value, size)) for value in (inputs[0] if inputs else None, output)]
                    alias = "" if _has_no_layers(module) else maker(output)
                    keep(LayerRun(name, module, sizes[0], sizes[1], alias), output)

            return hook

        for name, module in copied.named_modules():
            if name:
                module.register_forward_hook(after(name))
                if _has_no_layers(module):
                    module.register_forward_pre_hook(before(name))
        with torch.enable_grad():
            head = HeadWrapper(copied, self.head)
            answers = head.output(image)
            scores = sum_of_classes(head.scores(mean_of_places(answers)))
            if not runs or not scores.requires_grad:
                return []
            grads = torch.autograd.grad(scores, [output for _, output in runs], allow_unused=True)
        return [
            replace(run, size_out=()) if output is answers else run  # scores of places are no maps
            for (run, output), grad in zip(runs, grads, strict=True)
            if grad is not None and _alive(grad, size)
        ]


def head_keys(net: nn.Module, images: Tensor) -> list[Any]:
    """Return the keys or indices of a network's heads, [None] for a network that answers one tensor."""
    with torch.no_grad():
        return list(head_parts(net(images[:1]), 1))


def head_parts(answers: Any, count: int) -> dict[Any, Tensor]:
    """Return the scores (N, classes) of N = `count` images among the tensors of `parts_of`; where there are none, the
    scores of places (N, classes, ...). Raises `UserError` where there are none of these either."""
    parts = {key: part for key, part in parts_of(answers).items() if part.is_floating_point() and part.ndim > 1}
    parts = {key: part for key, part in parts.items() if len(part) == count}
    if not parts:
        raise UserError("the network answers no scores (N, classes)")
    return {key: part for key, part in parts.items() if part.ndim == 2} or parts


def parts_of(answers: Any) -> dict[Any, Tensor]:
    """Return the tensors in a dict, dataclass or tuple by key, those in nested dicts by "outer.inner"; a single tensor
    as {None: tensor}."""
    if isinstance(answers, Tensor):
        return {None: answers}
    if dataclasses.is_dataclass(answers):
        answers = {field.name: getattr(answers, field.name) for field in dataclasses.fields(answers)}
    if not isinstance(answers, Mapping | Sequence):
        raise UserError(f"the network answers a {type(answers).__name__}, not a tensor, dict or tuple of scores")
    parts: dict[Any, Tensor] = {}
    for key, value in (answers if isinstance(answers, Mapping) else dict(enumerate(answers))).items():
        if isinstance(value, Mapping):
            parts |= {f"{key}.{inner}": part for inner, part in parts_of(value).items()}
        elif isinstance(value, Tensor):
            parts[key] = value
    return parts


def mean_of_places(answers: Tensor) -> Tensor:
    """Return scores (N, classes), of scores of places (N, classes, ...) the mean."""
    return answers.flatten(2).mean(dim=2) if answers.ndim > 2 else answers


def sum_of_classes(scores: Tensor) -> Tensor:
    """Return a weighted sum of scores (N, classes), a scalar: its gradient shows what any class depends on. The weights
    differ, because probabilities have a constant sum."""
    return (scores * torch.linspace(1, 2, scores.shape[1]).to(scores)).sum()


class SigmoidRecorder(TorchDispatchMode):
    """Knows which tensors a sigmoid made, while it is active: as a module or a function, with or without gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Tensor] = []  # kept, so that no other tensor takes their memory
        self.mixed: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, aten = func(*args, **(kwargs or {})), torch.ops.aten
        packet, source = func.overloadpacket, args[0] if args else None
        source = source[0] if isinstance(source, list | tuple) and source else source
        copied = packet in (aten._to_copy, aten.clone, aten._reshape_copy, aten.cat)
        if packet in (aten.sigmoid, aten.sigmoid_) or (copied and self._made(source)):
            self.made.append(result)
        # The mean of sigmoids, as of several networks, or one with bounds is a probability, too, but of no known score.
        others = [value for value in args[1:] if isinstance(value, Tensor) and value.ndim]
        mixed = packet in (aten.mean, aten.sum, aten.stack, aten.add, aten.div, aten.mul, aten.rsub, aten.clamp)
        if packet == aten.hardsigmoid or (mixed and all(map(self._from_sigmoids, [source, *others]))):
            self.mixed.append(result)
        return result

    def _made(self, value: Any) -> bool:
        return _shares_memory(value, self.made)

    def _from_sigmoids(self, value: Any) -> bool:
        return _shares_memory(value, [*self.made, *self.mixed])

    def last_function(self, answers: Tensor) -> str:
        """Return "sigmoid" for a single unit that ends in one; "probability" for a single one that is made of some;
        "probabilities" for several that end in some, and for rows (N, classes, ...) that sum to 1 and hold no negative
        value; "" for scores."""
        if answers.ndim < 2 or not answers.is_floating_point():
            return ""
        if self._made(answers):
            return "sigmoid" if answers.shape[1] == 1 else "probabilities"
        if answers.shape[1] == 1 and _shares_memory(answers, self.mixed):
            return "probability" if ((answers >= 0) & (answers <= 1)).all() else ""
        rows = mean_of_places(answers).float()
        near = 1e-3 if answers.element_size() > 2 else 0.02
        return (
            "probabilities"
            if answers.shape[1] > 1 and (rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < near).all()
            else ""
        )


def _shares_memory(value: Any, others: Sequence[Tensor]) -> bool:
    """Return whether a value lies in the memory of one of the others, as views do."""
    if not isinstance(value, Tensor):
        return False
    return value.untyped_storage().data_ptr() in {other.untyped_storage().data_ptr() for other in others}


class SigmoidInputs(TorchFunctionMode):
    """Keeps what goes into sigmoids while it is active. Probabilities near 0 and 1 do not tell their score."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "sigmoid":
            self.pairs.append((result, args[0] if args else kwargs["input"]))
        return result

    def of(self, answers: Tensor) -> Tensor | None:
        """Return the input of the sigmoid that made `answers`, or None."""
        return next((value for result, value in self.pairs if result is answers), None)


def as_maps(value: Any, size: Sequence[int]) -> Tensor | None:
    """Return the output of a layer as maps (N, C, h, w), for images of `size` (H, W), or None.

    Channels may come last, as in Swin and ConvNeXt, or (N, tokens, C) hold a grid of patches after other tokens, as in
    vision transformers. Which, tell the proportions of the image.
    """
    if not isinstance(value, Tensor) or value.ndim not in (3, 4):
        return None
    if value.ndim == 4:
        _, first, second, third = value.shape
        grids = {(size[0] // stride, size[1] // stride) for stride in (1, 2, 4, 8, 16, 32, 64)}
        in_proportion = abs(second * size[1] - third * size[0]) <= max(size)
        last = (first, second) in grids and not in_proportion and third > second
        return value.permute(0, 3, 1, 2) if last else value
    grid = _grid_of_tokens(value.shape[1], size) if value.shape[2] > 1 else None
    return None if grid is None else value[:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid)


def _from_maps(maps: Tensor, value: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps in the layout of `value`, as a copy, which the network may overwrite."""
    if value.ndim == 3:
        tokens = maps.flatten(2).transpose(1, 2)
        return torch.cat([value[:, : value.shape[1] - tokens.shape[1]], tokens], dim=1)
    same = as_maps(value, size)
    assert same is not None
    return (maps if same.stride() == value.stride() and same.shape == value.shape else maps.permute(0, 2, 3, 1)).clone()


def _grid_of_tokens(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Return the rows and columns of patches among `tokens`. Up to eight tokens may be others."""
    for patch in range(1, max(size) + 1):
        grid = size[0] // patch, size[1] // patch
        if math.prod(grid) > 1 and 0 <= tokens - math.prod(grid) <= 8:
            return grid
    return None


def _size(maps: Tensor | None) -> tuple[int, ...]:
    return () if maps is None else tuple(maps.shape[2:])


def _alive(grad: Tensor, size: Sequence[int]) -> bool:
    """Return False for a gradient by tokens that is 0 for all patches: a transformer may answer by another token."""
    maps = as_maps(grad, size) if grad.ndim == 3 else None
    return maps is None or bool(maps.any())


def predict_logits(net: nn.Module, heads: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return {head: logits (N, units)} of `images` (N, C, H, W), computed in batches on a frozen copy."""
    net = frozen_copy(net)
    with torch.no_grad():
        parts = [net(batch) for batch in images.split(batch_size(images))]
    return {head: torch.cat([part[head] for part in parts]) for head in heads}


def leaf_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of every module without submodules, in the order of the network."""
    return {name: module for name, module in net.named_modules() if _has_no_layers(module)}


def _has_no_layers(module: nn.Module) -> bool:
    return all(name == "parametrizations" for name, _ in module.named_children())  # as of weight_norm


def layer_named(net: nn.Module, name: str) -> nn.Module:
    """Return the layer `name`. Raises `UserError` for an unknown name."""
    with suppress(AttributeError):
        if name:
            return net.get_submodule(name)
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

    handles = [layer_named(net, name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def maps_of(net: nn.Module, name: str, images: Tensor) -> Iterator[nn.Module]:
    """Send the maps of the layer `name` (N, C, h, w) through a module, which is yielded: hooks and Captum see them
    there, in one layout. Later changes in place do not reach them. Raises `UserError` for a layer without maps of all
    images, and for one that does not run."""
    passage, size, counts, ran = nn.Identity(), tuple(images.shape[2:]), list[int](), list[bool]()

    def through(value: Any) -> Tensor:
        ran.append(True)
        maps = as_maps(value, size)
        if maps is None:
            raise UserError(f"layer '{name}' has no maps (N, C, H, W); name another target_layer")
        if len(maps) != counts[-1]:
            raise UserError(
                f"layer '{name}' does not look at all images at once; give one at a time, or another target_layer"
            )
        return _from_maps(passage(maps), value, size)

    layer = layer_named(net, name.removesuffix(":input"))
    if name.endswith(":input"):
        handle = layer.register_forward_pre_hook(lambda _, inputs: (through(inputs[0]), *inputs[1:]))
    else:
        handle = layer.register_forward_hook(lambda _module, _inputs, output: through(output))
    counting = net.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        yield passage
    except Exception as error:
        if ran or not counts or isinstance(error, UserError):
            raise
        raise UserError(f"layer '{name}' does not run for these images; name another target_layer") from error
    finally:
        handle.remove()
        counting.remove()


def path_to_head(net: HeadWrapper, images: Tensor) -> list[str]:
    """Return the names of the layers on which a head depends (see `HeadWrapper.path`)."""
    return [run.name for run in net.path(images) if _is_leaf(run)]


def _is_leaf(run: LayerRun) -> bool:
    return _has_no_layers(run.module) and not run.name.endswith(":input")


def layers_up_to(net: HeadWrapper, images: Tensor, layer: str) -> list[LayerRun]:
    """Return the runs up to the last one of `layer`, included. Raises `UserError` where the head does not depend on
    it."""
    path = net.path(images)
    places = [place for place, run in enumerate(path, start=1) if run.name == layer]
    if not places:
        hint = did_you_mean(layer, [run.name for run in path])
        raise UserError(f"{net.title} does not depend on layer '{layer}'{hint}")
    return path[: places[-1]]


def _is_convolution(layer: nn.Module) -> bool:
    """A 1 x 1 convolution is a dense layer at every pixel and does not count."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def convolutions(net: nn.Module) -> list[str]:
    """Return the names of the convolutions, without 1 x 1 ones."""
    return [name for name, layer in leaf_modules(net).items() if _is_convolution(layer)]


def last_convolution(net: HeadWrapper, images: Tensor) -> str:
    """Return the name of the last convolution before a head; one that answers a single place is a dense layer. Raises
    `UserError` for a network without convolutions."""
    runs = [run for run in net.path(images) if _is_convolution(run.module) and _is_leaf(run)]
    if not runs and convolutions(net.net):
        raise UserError(f"no gradient passes from {net.title} to a convolution: {WITHOUT_GRADIENT}")
    if not runs:
        raise UserError(f"there is no convolution before {net.title}")
    return next((run for run in reversed(runs) if math.prod(run.size_out) > 1), runs[-1]).name


def default_target_layer(net: HeadWrapper, images: Tensor, target_layer: str | None = None) -> str:
    """Return the name of the layer that CAM methods look at.

    That is `target_layer` if it is given, and "last_convolution" for the last convolution before the head. By default
    it is the last output as large as that convolution's: an activation, or a block that joins several branches. Where
    the last convolution cuts the image into patches, it is the last LayerNorm with patches that matter, as in
    pytorch-grad-cam. Raises `UserError` for a network without such a layer, for a layer without maps or without effect
    on the head, and for one that runs several times.
    """
    path = net.path(images)
    runs = [run.name for run in path]
    if target_layer not in (None, LAST_CONVOLUTION):
        if not isinstance(target_layer, str):
            raise UserError(f"target_layer takes the name of a layer, not a {type(target_layer).__name__}")
        layer_named(net.net, target_layer.removesuffix(":input"))
        if not layers_up_to(net, images, target_layer)[-1].size_out:
            raise UserError(f"layer '{target_layer}' has no maps")
        if runs.count(target_layer) > 1:
            raise UserError(f"layer '{target_layer}' runs several times: name another, or its block")
        return target_layer
    convolution = layers_up_to(net, images, last_convolution(net, images))
    last, after = convolution[-1], path[len(convolution) :]
    if target_layer is None and last.module.kernel_size == last.module.stride != (1, 1):
        norms = [run for run in after if isinstance(run.module, nn.LayerNorm) and math.prod(run.size_out) > 1]
        if norms:
            return norms[-1].name
    usable = [
        run
        for run in (after if target_layer is None else ())
        if math.prod(run.size_out) > 1 and runs.count(run.name) == 1 and runs.count(run.alias) != 1
        if not (_is_leaf(run) and isinstance(run.module, (*AFFINE, nn.Linear, nn.Flatten, nn.Conv1d)))
    ]
    chosen = next((run for run in reversed(usable) if run.size_out == last.size_out), last)
    if usable and bypasses(net, images, chosen.name) and not bypasses(net, images, usable[-1].name):
        chosen = usable[-1]  # the block of the convolution pools after it
    if runs.count(chosen.name) > 1:
        raise UserError(f"layer '{chosen.name}' runs several times, as on several images; name another target_layer")
    return chosen.name


def bypasses(net: HeadWrapper, images: Tensor, layer: str, targets: Tensor | None = None) -> bool:
    """Return whether the score of one of the classes `targets` (None: of any) depends on the image also without the
    maps of `layer`."""
    classes = [None] if targets is None else targets.unique().tolist()
    keys = {number: (layer, number, *images.shape[1:]) for number in classes}
    if not all(key in net._bypassed for key in keys.values()):
        image = images[:1].detach().clone().requires_grad_()
        with torch.enable_grad(), maps_of(net.net, layer, images) as passage:
            passage.register_forward_hook(lambda _module, _inputs, output: output.detach())
            scores = net(image)
            for number, key in keys.items():
                score = sum_of_classes(scores) if number is None else scores[0, number]
                cut = not score.requires_grad
                grads = [None] if cut else torch.autograd.grad(score, image, allow_unused=True, retain_graph=True)
                net._bypassed[key] = grads[0] is not None and bool(grads[0].any())
    return any(net._bypassed[key] for key in keys.values())


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
        place = ((torch.arange(pixels) + 0.5 - self.start) / self.step).clamp(0, places - 1)
        distance = (place[:, None] - torch.arange(places)[None, :]).abs()
        return (1 - distance).clamp(min=0)


def receptive_fields(net: HeadWrapper, layer: str, images: Tensor) -> tuple[ReceptiveField, ReceptiveField]:
    """Return the receptive fields of a layer along rows and columns. Raises `UserError` where the head does not depend
    on the layer."""
    return placement(net, layer, images)[:2]


def placement(net: HeadWrapper, layer: str, images: Tensor) -> tuple[ReceptiveField, ReceptiveField, str]:
    """Return the receptive fields of a layer along rows and columns, and a warning or "".

    They follow from the kernels, strides, paddings and dilations of the layers before it. Where another module or a
    function changes the size of maps, or gradients disagree, as for a mirrored image, they are measured by gradients.
    Where these lie on no straight line, the maps are stretched to the image, with a warning.
    """
    key = layer, *images.shape[1:]
    if key not in net._fields:
        runs, size = layers_up_to(net, images, layer), tuple(images.shape[2:])
        fields, warning = [], ""
        for axis, (at, centres) in enumerate(_centres(net, layer, images, runs[-1].size_out)):
            plain = size[axis] / runs[-1].size_out[axis]
            field = _computed(runs, axis, size)
            if field is None or not _agrees(field, at, centres, size[axis]):
                field = _fitted(at, centres, plain)
            if field is None:
                warning = f"where layer '{layer}' looks is not known: its maps are stretched to the image"
            fields.append(field or ReceptiveField(plain / 2, plain))
        net._fields[key] = fields[0], fields[1], warning
    return net._fields[key]


def _computed(runs: list[LayerRun], axis: int, size: tuple[int, ...]) -> ReceptiveField | None:
    """Return the field of the last of `runs`, or None where a size is not explained. Maps are known by their size: on
    parallel paths, as in residual blocks, maps of one size look at the same places."""
    fields = {size: ReceptiveField(0.5, 1.0)}
    for run in runs:
        single = 1 in (math.prod(run.size_in), math.prod(run.size_out))  # a gate, or no maps
        if single or not _is_leaf(run):
            continue
        if run.size_in not in fields:
            return None
        field, module = fields[run.size_in], run.module
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            reach = _along(getattr(module, "dilation", 1), axis) * (_along(module.kernel_size, axis) - 1)
            step, padding = _along(module.stride, axis), module.padding
            if isinstance(padding, str):
                padding = {"same": reach // 2, "valid": 0}[padding]
            start = field.start + (reach / 2 - _along(padding, axis)) * field.step
            field = ReceptiveField(start, field.step * step, field.size + reach * field.step)
        elif run.size_in != run.size_out:
            return None
        other = fields.setdefault(run.size_out, field)
        if (other.start, other.step) != (field.start, field.step):
            return None
        fields[run.size_out] = max(field, other, key=lambda one: one.size)
    return fields.get(runs[-1].size_out)


def _centres(net: HeadWrapper, layer: str, images: Tensor, places: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return some places of a layer along rows, and where they look: the centres, in pixels, of their gradients for
    noise; the same along columns. Places that see nothing are left out."""
    share = torch.linspace(0.2, 0.8, PLACES, dtype=torch.float64)
    # Rows go down and columns to the left: a transposed image shows too.
    at = [(part * (count - 1)).round().long() for part, count in zip((share, share.flip(0)), places, strict=True)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(NOISES * PLACES, *images.shape[1:], generator=generator).to(images)
    high = 2.0 ** images.abs().amax().double().clamp(min=1).log2().ceil()  # alike for most images and their batch
    noise = (noise * high if images.min() >= 0 else (2 * noise - 1) * high).to(images).requires_grad_()
    kept: list[Tensor] = []
    with torch.enable_grad(), maps_of(net.net, layer, images) as passage:
        passage.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        with suppress(UserError):  # it takes one image at a time
            net(noise)
        if not kept or len(kept[-1]) < len(noise):  # or another way for noise
            return [(torch.empty(0), torch.empty(0))] * 2
        picked = kept[-1][torch.arange(len(noise)), :, at[0].repeat(NOISES), at[1].repeat(NOISES)]
        signs = torch.randn(picked.shape, generator=generator).to(picked)
        (grads,) = torch.autograd.grad((picked * signs).sum(), noise)
    weights = grads.double().square().sum(dim=1).view(NOISES, PLACES, *images.shape[2:]).mean(dim=0).cpu()
    # What reaches every place alike, as through attention and gates, tells no place.
    weights = (weights - weights.mean(dim=(1, 2), keepdim=True)).clamp(min=0)
    sums = weights.sum(dim=(1, 2))
    weights = weights[sums > 0] / sums[sums > 0, None, None]
    pixels = [torch.arange(count, dtype=torch.float64) + 0.5 for count in images.shape[2:]]
    return [(at[axis][sums > 0].double(), weights.sum(dim=2 - axis) @ pixels[axis]) for axis in (0, 1)]


def _agrees(field: ReceptiveField, at: Tensor, centres: Tensor, pixels: int) -> bool:
    """Return whether places look about where `field` says. Deep networks blur the centres towards the middle, but not
    beyond the field, and they do not shift them."""
    if len(at) < 2:
        return True
    expected = field.start + field.step * at - pixels / 2  # from the middle
    measured = centres - pixels / 2
    away = (expected - measured).abs().max()
    spread = expected - expected.mean()
    slope = (spread * measured).sum() / spread.square().sum().clamp(min=1e-12)
    shift = (measured - slope * expected).mean().abs()
    near = max(2 * field.step, min(pixels / 4, field.size / 2))
    return bool(slope >= 0 and away <= near and shift <= max(field.step, pixels / 16))


def _fitted(at: Tensor, centres: Tensor, plain: float) -> ReceptiveField | None:
    """Return the field of places with these centres, or None where they lie on no straight line."""
    if not len(at):
        return None
    spread = (at - at.mean()).square().sum()
    step = float(((at - at.mean()) * (centres - centres.mean())).sum() / spread) if spread else plain
    start = float(centres.mean() - step * at.mean())
    straight = (start + step * at - centres).abs().max() <= max(1.0, step)
    return ReceptiveField(start, step, step) if straight and 0.25 * plain <= step <= 1.5 * plain else None


def _along(size: Any, axis: int) -> int:
    return int(size[axis] if isinstance(size, tuple) else size)
