"""Networks of one oddity each, and what every method makes of them.

`python -m tests.interpret.networks` writes the table of docs/networks.md."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from cnnlab.interpret.attribution import Attribution, LayerMap, attribute, to_image
from cnnlab.interpret.network import HeadWrapper, frozen_copy, maps_of, placement
from cnnlab.interpret.registry import named_method
from cnnlab.utils.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
CAMS = ("grad_cam", "hires_cam", "grad_cam_pp", "layer_cam", "score_cam")
METHODS = (
    *CAMS, "saliency", "input_x_gradient", "integrated_gradients", "deep_lift", "lrp", "guided_backprop",
    "deconvolution", "occlusion", "feature_ablation",
)  # fmt: skip
RIGHT, WARNED, REFUSED = "right", "warned", "refused"
SIZE = (32, 40)


class Odd(nn.Module):
    """A network of two parts: `maps` makes the maps (N, K, h, w) of the last module with maps; `answer` makes the class
    scores of them, after an activation that is a function, or class probabilities where `probabilities` is true."""

    probabilities: bool

    def __init__(
        self,
        maps: Callable[[Any, Tensor], Tensor],
        answer: Callable[[Any, Tensor], Any] | None = None,
        act: Callable[[Tensor], Tensor] = lambda x: x,
        probabilities: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.dense = nn.ReLU(), nn.Linear(8, 4)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._maps, self._answer, self._act = maps, answer, act

    def maps(self, images: Tensor) -> Tensor:
        return self._maps(self, images)

    def answer(self, maps: Tensor) -> Any:
        maps = self._act(maps)
        return self._answer(self, maps) if self._answer else self.dense(maps.mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.maps(images))


@dataclass
class Scores:
    """A network's answer as a dataclass."""

    scores: Tensor


class Twins(nn.Module):
    """Runs one body on both halves of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.dense = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        left, right = (self.body(half).mean(dim=(2, 3)) for half in images.chunk(2, dim=3))
        return self.dense(left - right)


class Transformer(nn.Module):
    """Patches, a class token, one block of attention."""

    def __init__(self, token: bool) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, int(token), 8))
        self.norm1, self.qkv, self.norm = nn.LayerNorm(8), nn.Linear(8, 24), nn.LayerNorm(8)
        self.dense = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = x + F.scaled_dot_product_attention(*self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = self.norm(x)
        return self.dense(x[:, 0] if self.token.shape[1] else x.mean(dim=1))


class LastLinear(nn.Module):
    """A block with channels last, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.wide, self.act, self.narrow = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.act(self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """An LSTM, whose output is a tuple, over the rows of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.lstm = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.LSTM(8, 8, batch_first=True)
        self.dense = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.relu(self.conv(images)).mean(dim=3).transpose(1, 2)
        return self.dense(self.lstm(rows)[0][:, -1])


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def _two(net: Any, x: Tensor) -> Tensor:
    """Maps of two convolutions, with activation and pooling between."""
    return net.conv2(F.max_pool2d(net._act(net.conv1(x)), 2))


def _two_relus(**settings: Any) -> Odd:
    return Odd(_two, act=relu, **settings)


def _after(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Maps after something else has changed their size."""
    return lambda net, x: net.relu(net.conv2(change(net, F.relu(net.conv1(x)))))


def _residual(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.conv1(x))
    y = net.conv2(x)
    y += x
    return F.relu(y, inplace=True)


def _branches(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.conv1(x))
    return net.joined(torch.cat([F.relu(net.conv2(x)), F.relu(net.conv3(x))], dim=1))


def _without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.relu(net.conv1(x))
    return net.relu(net.conv2(x))


def _unpooled(net: Any, x: Tensor) -> Tensor:
    x, places = net.pool(F.relu(net.conv1(x)))
    return net.conv2(net.unpool(x, places))


def _gated(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.conv2(F.relu(net.conv1(x))))
    return net.gate(x * torch.sigmoid(net.squeeze(x.mean(dim=(2, 3), keepdim=True))))


def _no_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    return Odd(lambda net, x: F.relu(net.norm(net.conv1(x))), norm=norm)


def _scripted() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ReLU as a module": lambda: Odd(lambda net, x: net.relu(net.conv2(net.first(net.conv1(x)))), first=nn.ReLU()),
    "ReLU as a function": _two_relus,
    "ReLU in place": lambda: Odd(_two, act=lambda x: F.relu(x, inplace=True)),
    "one ReLU that runs twice": lambda: Odd(
        lambda net, x: net.conv2(net.relu(net.conv1(x))), lambda net, maps: net.dense(net.relu(maps).mean(dim=(2, 3)))
    ),
    "GELU": lambda: Odd(_two, act=F.gelu),
    "SiLU modules": lambda: Odd(
        lambda net, x: net.act2(net.conv2(net.act1(net.conv1(x)))), act1=nn.SiLU(True), act2=nn.SiLU(True)
    ),
    "residual sum, in place": lambda: Odd(_residual),
    "gate (squeeze and excitation)": lambda: Odd(_gated, squeeze=nn.Conv2d(8, 8, 1), gate=nn.Identity()),
    "two branches, concatenated": lambda: Odd(
        _branches, conv3=nn.Conv2d(8, 8, 3, padding=1), joined=nn.Identity(), dense=nn.Linear(16, 4)
    ),
    "strides of 2 and 1": lambda: _two_relus(conv1=nn.Conv2d(3, 8, 5, (2, 1)), conv2=nn.Conv2d(8, 8, 3, dilation=2)),
    "adaptive pooling inside": lambda: Odd(_after(lambda net, x: F.adaptive_avg_pool2d(x, (9, 7)))),
    "upsampling inside": lambda: Odd(_after(lambda net, x: net.up(x)), up=nn.Upsample(scale_factor=2)),
    "transposed convolution": lambda: Odd(_after(lambda net, x: net.up(x)), up=nn.ConvTranspose2d(8, 8, 2, 2)),
    "resizing of the image": lambda: Odd(lambda net, x: _two(net, F.interpolate(x, (20, 20))), act=relu),
    "reflecting padding": lambda: Odd(_after(lambda net, x: net.pad(x)[:, :, ::2, ::2]), pad=nn.ReflectionPad2d(3)),
    "cropping": lambda: Odd(_after(lambda net, x: x[:, :, 4:-4, 8:])),
    "unpooling with indices": lambda: Odd(
        _unpooled, act=relu, pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2)
    ),
    "channels last (ConvNeXt)": lambda: Odd(lambda net, x: net.block(net.conv1(x)), block=LastLinear()),
    "transformer, class token": lambda: Transformer(token=True),
    "transformer, mean of tokens": lambda: Transformer(token=False),
    "LSTM after the maps": Recurrent,
    "one body on two halves": Twins,
    "BatchNorm without statistics": _no_statistics,
    "weight norm": lambda: _two_relus(conv2=weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
    "first layer under no_grad": lambda: Odd(_without_gradient),
    "gradient checkpointing": lambda: Odd(
        lambda net, x: net.relu(checkpoint(net.conv2, F.relu(net.conv1(x)), use_reentrant=False))
    ),
    "softmax at the end": lambda: _two_relus(
        answer=lambda net, maps: net.dense(maps.mean(dim=(2, 3))).mul(4).softmax(dim=1), probabilities=True
    ),
    "sigmoid at the end": lambda: _two_relus(dense=nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), probabilities=True),
    "head of one unit": lambda: _two_relus(dense=nn.Linear(8, 1)),
    "dataclass as answer": lambda: _two_relus(answer=lambda net, maps: Scores(net.dense(maps.mean(dim=(2, 3))))),
    "scores of places": lambda: Odd(
        lambda net, x: relu(_two(net, x)), lambda net, maps: net.places(maps), places=nn.Conv2d(8, 4, 1)
    ),
    "no convolution": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "TorchScript": _scripted,
    "bfloat16": lambda: _two_relus().bfloat16(),
}


def torchvision_net(name: str) -> nn.Module:
    """Return one of torchvision's networks with random weights."""
    from torchvision.models import get_model

    settings: dict[str, Any] = {
        "googlenet": {"init_weights": False, "aux_logits": False},
        "vit_b_16": {"image_size": 128},
    }
    settings = settings.get(name, {})
    return lively(get_model(name, weights=None, **settings))


def lively(net: nn.Module) -> nn.Module:
    """Return a network of which no part has weights 0, as parts of untrained ones do: their maps would all be 0."""
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.any() and (parameter.ndim > 1 or parameter is getattr(module, "weight", None)):
                nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.ones_(parameter)
    return net


TORCHVISION = (
    *("resnet18", "mobilenet_v3_small", "vgg11_bn", "densenet121", "googlenet", "efficientnet_b0", "convnext_tiny"),
    *("swin_t", "vit_b_16"),
)
LARGE: dict[str, Callable[[], nn.Module]] = {
    f"torchvision {name}": lambda name=name: torchvision_net(name)  # type: ignore[misc]
    for name in TORCHVISION
}


def images_for(name: str, net: nn.Module) -> Tensor:
    """Return two random images (2, 3, H, W) that the network takes."""
    size = (128, 128) if name in LARGE else SIZE
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(next(net.parameters()).dtype)


def row(name: str) -> list[str]:
    """Return what each method makes of a network: right, warned, or refused. Raises AssertionError for a map that is
    wrong without a word, and what the method raises if it is no `UserError`."""
    torch.manual_seed(0)
    net = (NETWORKS | LARGE)[name]().eval()
    images = images_for(name, net)
    return [cell(net, images, method) for method in METHODS]


def cell(net: nn.Module, images: Tensor, method: str) -> str:
    """Return what a method makes of a network (see `row`)."""
    settings = {"n_steps": 64} if method == "integrated_gradients" else {}
    if images.shape[-1] > 100 and method in ("score_cam", "occlusion", "feature_ablation"):
        return "–"  # hundreds of passes, which know no layers
    before = copy.deepcopy(net.state_dict())
    try:
        result = attribute(net, images, 1 if classes(net, images) > 1 else 0, named_method(method, **settings)[1])
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError(f"{method}: not one line: {error}") from error
        return REFUSED
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    if result.warnings:
        return WARNED
    check(net, images, method, result)
    return RIGHT


def scores(net: nn.Module, images: Tensor) -> Tensor:
    """Return the scores (N, classes) of a network, as documented: places are averaged, a sigmoid is undone."""
    answer = units(net(images), getattr(net, "probabilities", False))
    return torch.cat([-answer, answer], dim=1) if answer.shape[1] == 1 else answer


def units(answer: Any, probabilities: bool) -> Tensor:
    answer = answer.scores if isinstance(answer, Scores) else answer
    answer = answer.flatten(2).mean(dim=2) if answer.ndim > 2 else answer
    return (answer / (1 - answer)).log() if probabilities and answer.shape[1] == 1 else answer


def classes(net: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        return scores(net, images[:1]).shape[1]


def check(net: nn.Module, images: Tensor, method: str, result: Attribution) -> None:
    """Raise AssertionError where a result is not what the formula says, worked out anew."""
    close = {"rtol": 0.05, "atol": 0.02} if images.dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-5}
    inputs = images.clone().requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(scores(net, inputs)[:, 1].sum(), inputs)[0].float()

    def same(found: Tensor, expected: Tensor) -> None:
        scale = expected.abs().max().clamp(min=1e-12)
        torch.testing.assert_close(found / scale, expected.float() / scale, **close)

    with torch.no_grad():
        score, black = (scores(net, batch)[:, 1].float() for batch in (images, torch.zeros_like(images)))
    if method in CAMS:
        if isinstance(net, Odd):
            assert result.layer_map is not None
            same(result.layer_map.values, cam(net, images, method))
        assert result.layer_map is not None
        check_place(net, images, result.layer_map.layer)
    elif method == "saliency":
        same(result.maps, gradient().abs().amax(dim=1))
    elif method == "input_x_gradient":
        same(result.maps, (gradient() * images.float()).sum(dim=1))
    elif method in ("integrated_gradients", "deep_lift", "lrp"):
        torch.testing.assert_close(result.maps.sum(dim=(1, 2)), score - black, rtol=0.0501, atol=1e-5)
    elif method in ("guided_backprop", "deconvolution"):
        rule = _Guided if method == "guided_backprop" else _Deconvolution
        with mock.patch.object(F, "relu", lambda input, inplace=False: rule.apply(input, inplace)):
            same(result.maps, gradient().sum(dim=1))
    else:  # the first square or window alone
        size, stride = (4, 4) if method == "feature_ablation" else (5, 2)
        covered = images.clone()
        covered[:, :, :size, :size] = 0
        with torch.no_grad():
            drop = score - scores(net, covered)[:, 1].float()
        same(result.maps[:, :stride, :stride], drop[:, None, None].expand(-1, stride, stride))


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, inplace: bool = False) -> Tensor:
        ctx.save_for_backward(value.clone())
        return value.clamp_(min=0) if inplace else value.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad.clamp(min=0) * (ctx.saved_tensors[0] > 0), None


class _Deconvolution(_Guided):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad.clamp(min=0), None


def _probability(found: Tensor, probabilities: bool) -> Tensor:
    return found[:, 1] if probabilities else found.softmax(dim=1)[:, 1]


def cam(net: Odd, images: Tensor, method: str) -> Tensor:
    """Return the maps (N, h, w) of a CAM method by its formula, from the two parts of the network."""
    maps = net.maps(images).detach().requires_grad_()
    answer = units(net.answer(maps.clone()), net.probabilities)
    score = answer[:, 0 if answer.shape[1] == 1 else 1]
    (grads,) = torch.autograd.grad(score.sum(), maps)
    maps, grads = maps.detach().float(), grads.float()
    if method == "score_cam":
        size, weights = tuple(images.shape[2:]), []
        wrapper = HeadWrapper(frozen_copy(net))
        layer = attribute(net, images, 1, named_method("grad_cam")[1]).layer_map
        assert layer is not None
        for channel in maps.unbind(dim=1):
            mask = to_image(LayerMap(layer.layer, channel), wrapper, images)
            low, high = mask.amin(dim=(1, 2), keepdim=True), mask.amax(dim=(1, 2), keepdim=True)
            mask = ((mask - low) / (high - low).where(high > low, 1)).view(-1, 1, *size).to(images)
            with torch.no_grad():
                found = scores(net, images * mask)
                share = found[:, 1].sigmoid() if answer.shape[1] == 1 else _probability(found, net.probabilities)
                weights.append(share.float())
        return (torch.stack(weights, dim=1)[..., None, None] * maps).sum(dim=1).clamp(min=0)
    if method == "grad_cam":
        return (grads.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).clamp(min=0)
    if method == "hires_cam":
        return (grads * maps).sum(dim=1).clamp(min=0)
    if method == "layer_cam":
        return (grads.clamp(min=0) * maps).sum(dim=1).clamp(min=0)
    below = 2 * grads**2 + grads**3 * maps.sum(dim=(2, 3), keepdim=True)
    shares = torch.where(below != 0, grads**2 / below.where(below != 0, 1), 0)
    return ((shares * grads.clamp(min=0)).sum(dim=(2, 3), keepdim=True) * maps).sum(dim=1).clamp(min=0)


def check_place(net: nn.Module, images: Tensor, layer: str) -> None:
    """Raise AssertionError where the maps of a layer, drawn over the image, do not show within one step of the layer
    where a small change was made to the image."""
    size = tuple(images.shape[2:])
    wrapper, radius = HeadWrapper(frozen_copy(net)), max(1, min(size) // 24)
    steps = [max(1.0, field.step) for field in placement(wrapper, layer, images)[:2]]
    noise = torch.Generator().manual_seed(2)
    for share in ((0.35, 0.4), (0.5, 0.65)):
        at = [round(part * pixels) for part, pixels in zip(share, size, strict=True)]
        changed, kept = images[:1].clone(), []
        spot = torch.randn(1, 3, 2 * radius + 1, 2 * radius + 1, generator=noise).to(images)
        changed[:, :, at[0] - radius : at[0] + radius + 1, at[1] - radius : at[1] + radius + 1] += 4 * spot
        with torch.no_grad(), maps_of(wrapper.net, layer, images) as passage:
            passage.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
            wrapper(images[:1])
            wrapper(changed)
        change = (kept[1] - kept[0]).float().square().sum(dim=1)
        # What reaches every place alike, as by global gates or attention, tells no place.
        change = (change - change.mean()).clamp(min=0)
        shown = to_image(LayerMap(layer, change), wrapper, images)[0].double()
        for axis in (0, 1):
            along = shown.sum(dim=1 - axis) / shown.sum()
            centre = (along * (torch.arange(size[axis]) + 0.5)).sum().item()
            largest = along.argmax().item() + 0.5  # deep networks blur the change over the whole map
            away = min(abs(place - at[axis] - 0.5) for place in (centre, largest))
            assert away <= steps[axis], (layer, axis, centre, largest, at, steps)


MARKS = {RIGHT: "✓", WARNED: "!", REFUSED: "×", "–": "–"}


def line(name: str, cells: list[str]) -> str:
    """Return a row of the table in Markdown."""
    return f"| {name} | " + " | ".join(MARKS[one] for one in cells) + " |"


def main() -> None:
    """Write the table."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index("<!-- table -->"), page.index("<!-- end -->")
    head = "| network | " + " | ".join(f"`{method}`" for method in METHODS) + " |"
    rule = "| --- |" + " :---: |" * len(METHODS)
    lines = [line(name, row(name)) for name in NETWORKS | LARGE]
    table = "\n".join([head, rule, *lines])
    PAGE.write_text(f"{page[:start]}<!-- table -->\n\n{table}\n\n{page[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
