"""Looking into a network: one head of it, one layer of it, and no trace of having looked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import UserError
from cnnlab.heads import Head
from cnnlab.nets import Net

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Within, the network is in evaluation mode and its parameters ask for no gradient; after, also after an
    exception, modes, `requires_grad`, gradients, hooks and the global random state are as they were."""
    modes = [(module, module.training) for module in net.modules()]
    grads = [(parameter, parameter.requires_grad, parameter.grad) for parameter in net.parameters()]
    hooks = [(module, {name: _copy(getattr(module, name)) for name in _HOOKS}) for module in net.modules()]
    # Only the CPU generator is ever drawn from here; fork_rng also keeps the ones of the GPUs.
    with torch.random.fork_rng():
        try:
            net.eval()
            for parameter in net.parameters():
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, requires_grad, grad in grads:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            for module, saved in hooks:
                for name, before in saved.items():
                    _restore(module, name, before)


def _copy(hooks: Any) -> Any:
    return hooks.copy() if isinstance(hooks, dict) else hooks


def _restore(module: nn.Module, name: str, before: Any) -> None:
    now = getattr(module, name)
    if isinstance(now, dict):  # the same object must stay: handles refer to it
        now.clear()
        now.update(before)
    else:
        setattr(module, name, before)


def _answers(net: nn.Module, images: Tensor, part: str) -> dict[str, Tensor]:
    """What the network says; where it is one of the lab's and `part` is a head, only what that one says."""
    answers: dict[str, Tensor] = (
        net(images, [part]) if isinstance(net, Net) and part in net.head_names else net(images)
    )
    return answers


class OneHead(nn.Module):
    """One head of a network as a single tensor: a score for each class, float32 (B, classes).

    A binary head's one unit is the evidence for its second class; the score of the first is its negative.
    """

    def __init__(self, net: nn.Module, head: Head) -> None:
        super().__init__()
        self.net, self.head = net, head

    def forward(self, images: Tensor) -> Tensor:
        logits = _answers(self.net, images, self.head.name)[self.head.name]
        return torch.cat([-logits, logits], dim=1) if self.head.units == 1 else logits


class _ReachedError(Exception):
    """Stops a forward pass at the layer that was asked for."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def output_of(net: nn.Module, name: str, images: Tensor) -> Tensor:
    """The output of the layer of that name, without running what comes after it, or beside it in the branches
    of other heads. Differentiable in `images`."""

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        raise _ReachedError(output)

    handle = layer_named(net, name).register_forward_hook(stop)
    try:
        _answers(net, images, name.partition(".")[0])
    except _ReachedError as reached:
        return reached.output
    finally:
        handle.remove()
    raise UserError("that layer does not run when the network does")


def layer_named(net: nn.Module, name: str) -> nn.Module:
    """The layer of that name; `UserError` with the nearest or all names where there is none."""
    layers = leaves(net)
    if name not in layers:
        raise UserError(f"there is no layer '{name}'{options(name, layers)}")
    return layers[name]


def leaves(net: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of every layer that has no layers inside, in the order of the network."""
    return {name: module for name, module in net.named_modules() if not list(module.children())}


def options(wrong: str, right: Sequence[str] | dict[str, Any]) -> str:
    """The end of an error message: the nearest of the right names, and all of them."""
    near = get_close_matches(wrong, list(right), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (there are {', '.join(right)})"


def path(net: nn.Module, head: Head) -> dict[str, nn.Module]:
    """{name: layer} of the layers between the image and a head's answer: the common stem, unless the head's
    own branch begins with one, and the branch."""
    own = {name: layer for name, layer in leaves(net).items() if name.startswith(f"{head.name}.")}
    if any(name.startswith(f"{head.name}.stem.") for name in own):
        return own
    return {name: layer for name, layer in leaves(net).items() if name.startswith("stem.")} | own


def last_convolution(net: nn.Module, head: Head) -> str:
    """The name of the last convolution before a head: in the head's own branch where it has one, else in
    the part that all share. A 1 x 1 convolution, a dense layer at every pixel, does not count."""
    names = [
        name
        for name, layer in path(net, head).items()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    if not names:
        raise UserError(f"there is no convolution before head '{head.name}'")
    return names[-1]
