"""DeepLIFT, LRP, guided backpropagation and deconvolution: by hand, and beside Captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from captum.attr import Deconvolution, DeepLift, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.interpret.attribution import attribute
from cnnlab.interpret.methods.rules import deconvolution, deep_lift, guided_backprop, lrp
from cnnlab.utils.errors import UserError


class Net(nn.Module):
    """Calls a function with the network's two convolutions and its dense layer."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], places: int = 36) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.dense = nn.LayerNorm([8, 12, 12]), nn.Linear(8 * places, 5)
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(F.adaptive_avg_pool2d(self.function(self, images), 6).flatten(1))


def _twice(activation: Callable[[Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: activation(net.conv2(activation(net.conv1(x))))


def _forgetful(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)  # and its result is not used
    return x


def _gated(net: Net, x: Tensor) -> Tensor:
    x = F.relu(net.conv1(x))
    return x * torch.sigmoid(net.conv2(x).mean(dim=(2, 3), keepdim=True))


def _residual(net: Net, x: Tensor) -> Tensor:
    x = F.relu(net.conv1(x))
    y = net.conv2(x)
    y += x
    return y.relu_()


FUNCTIONS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "relu": _twice(F.relu),
    "relu_": _twice(lambda x: x.relu_()),
    "relu in place, result unused": _twice(_forgetful),
    "relu in place by position": _twice(lambda x: F.relu(x, True)),
    "relu by keyword": _twice(lambda x: F.relu(input=x)),
    "softmax by keyword": lambda net, x: net.conv2(F.softmax(input=net.conv1(x), dim=1)),
    "gelu": _twice(F.gelu),
    "silu": _twice(F.silu),
    "hardswish": _twice(F.hardswish),
    "elu": _twice(F.elu),
    "softplus": _twice(F.softplus),
    "swish by hand": _twice(lambda x: x * x.sigmoid()),
    "swish by hand, in place": _twice(lambda x: x.mul_(x.sigmoid())),
    "softsign by hand": _twice(lambda x: x / (1 + x.abs())),
    "squares": _twice(lambda x: x**2),
    "overlapping pooling": lambda net, x: net.conv2(F.max_pool2d(net.conv1(x), 3, 2, padding=1)),
    "pooling with dilation": lambda net, x: net.conv2(F.max_pool2d(net.conv1(x), 2, 1, dilation=2)),
    "pooling beside relu": lambda net, x: F.relu(net.conv2(F.max_pool2d(F.relu(net.conv1(x)), 2))),
    "relu beside pooling": lambda net, x: F.relu(net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))),
    "torch's pooling": lambda net, x: net.conv2(torch.max_pool2d(net.conv1(x), 3, 2)),
    "product by keyword": lambda net, x: torch.mul(input=net.conv1(x), other=net.conv2(net.conv1(x))),
    "adaptive pooling": lambda net, x: net.conv2(F.adaptive_max_pool2d(net.conv1(x), 7)),
    "one layer three times": lambda net, x: F.relu(net.conv2(F.relu(net.conv2(F.relu(net.conv1(x)))))),
    "gate": _gated,
    "residual, in place": _residual,
    "softmax of channels": lambda net, x: net.conv2(net.conv1(x).softmax(dim=1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_deep_lift_adds_up_for_functions_as_for_layers(name: str) -> None:
    net = Net(FUNCTIONS[name])
    images, baseline = torch.randn(3, 3, 12, 12), torch.full((1, 3, 12, 12), 0.3)
    result = attribute(net, images, torch.tensor([0, 1, 4]), deep_lift)
    assert result.warnings == ()
    with torch.no_grad():
        for target in range(5):
            maps = attribute(net, images, target, deep_lift).maps
            difference = (net(images) - net(torch.zeros_like(images)))[:, target]
            torch.testing.assert_close(maps.sum(dim=(1, 2)), difference, rtol=1e-3, atol=1e-5)
            other = attribute(net, images, target, lambda net, x, t: deep_lift(net, x, t, baselines=0.3)).maps
            difference = (net(images) - net(baseline))[:, target]
            torch.testing.assert_close(other.sum(dim=(1, 2)), difference, rtol=1e-3, atol=1e-5)
    softmax = nn.Sequential(net, nn.Softmax(dim=1))
    assert attribute(softmax, images, 1, deep_lift).warnings == ()
    alone = torch.cat([attribute(net, image, 2, deep_lift).maps for image in images.split(1)])
    torch.testing.assert_close(attribute(net, images, 2, deep_lift).maps, alone, rtol=1e-3, atol=1e-6)


def test_what_deep_lift_has_no_rule_for_is_said() -> None:
    net = Net(lambda net, x: F.relu(net.norm(net.conv1(x))))
    (warning,) = attribute(net, torch.randn(3, 3, 12, 12), 0, deep_lift).warnings
    assert "the map's sum misses the score difference" in warning


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ReLU, lambda: nn.Conv2d(8, 8, 3), nn.ReLU],
        [lambda: nn.MaxPool2d(2), lambda: nn.BatchNorm2d(8), nn.ReLU, lambda: nn.Conv2d(8, 8, 3), nn.ReLU],
        # Other layers stand between activations and pooling: beside each other Captum is wrong (captum #1843).
        [nn.ReLU, lambda: nn.Conv2d(8, 8, 1), lambda: nn.MaxPool2d(2), lambda: nn.BatchNorm2d(8), nn.Tanh],
        [nn.Sigmoid, lambda: nn.AvgPool2d(2), nn.ELU, lambda: nn.Conv2d(8, 8, 3), nn.Softplus],
    ],
)
def test_deep_lift_is_captums_where_captum_is_right(layers: list[Callable[[], nn.Module]]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), *(make() for make in layers), nn.Flatten(), nn.LazyLinear(4)
    )  # fmt: skip
    image, target = torch.randn(1, 3, 12, 12), torch.tensor([2])
    net(image)
    with warnings.catch_warnings(action="ignore"):  # of its hooks
        theirs = DeepLift(net.eval()).attribute(image, target=target).sum(dim=1).detach()
    torch.testing.assert_close(attribute(net, image, target, deep_lift).maps, theirs, rtol=1e-4, atol=1e-6)


class Sum(nn.Module):
    """Answers the sum of a function of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        total = self.function(images).flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, -total], dim=1)


@pytest.mark.parametrize(
    ("function", "pixels", "expected"),
    [
        # Two windows hold 3: it counts twice.
        (lambda x: F.max_pool2d(x, (1, 2), 1), [1.0, 3.0, 2.0], [0.0, 6.0, 0.0]),
        # relu(x0 + x1 - 1) = 2 for (2, 1), and 0 on black: the slope is 2 / 3.
        (lambda x: F.relu(x[..., :1] + x[..., 1:2] - 1), [2.0, 1.0, 9.0], [4 / 3, 2 / 3, 0.0]),
        # x0 x1 = 6: each factor with the mean of the other, 2 * 1.5 and 3 * 1.
        (lambda x: x[..., :1] * x[..., 1:2], [2.0, 3.0, 9.0], [3.0, 3.0, 0.0]),
        # x0 squared, 16, by the slope 4.
        (lambda x: x[..., :1] ** 2, [4.0, 3.0, 9.0], [16.0, 0.0, 0.0]),
        # Below black nothing is the largest: 0 of black, not -1, stands at both sides of -1 and -2.
        (lambda x: F.max_pool2d(x, (1, 3)), [-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]),
    ],
)
def test_deep_lift_by_hand(function: Callable[[Tensor], Tensor], pixels: list[float], expected: list[float]) -> None:
    image = torch.tensor(pixels).view(1, 1, 1, 3)
    maps = attribute(Sum(function), image, 0, deep_lift).maps
    torch.testing.assert_close(maps.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def _weighted(weights: list[float], bias: float = 0.0) -> Callable[[Tensor], Tensor]:
    kernel = torch.tensor(weights).view(1, 1, 1, 3)
    return lambda x: F.conv2d(x, kernel, torch.tensor([bias]))


@pytest.mark.parametrize(
    ("function", "pixels", "expected"),
    [
        # 3 - 1 = 2: all of it to what adds to it.
        (_weighted([1.0, -1.0, 0.0]), [3.0, 1.0, 5.0], [2.0, 0.0, 0.0]),
        # 1 + 2 - 2 = 1: negative pixels by negative weights add too; 1 is shared as 1 to 2.
        (_weighted([1.0, -1.0, 1.0]), [1.0, -2.0, -2.0], [1 / 3, 2 / 3, 0.0]),
        # The bias has no share: relu(4 - 1) = 3 as 3 to 1.
        (lambda x: F.relu(_weighted([1.0, 1.0, 0.0], -1.0)(x)), [3.0, 1.0, 5.0], [9 / 4, 3 / 4, 0.0]),
        # An addition: 2 x0 + relu(x0).
        (lambda x: 2 * x + F.relu(x), [1.0, 0.0, -1.0], [3.0, 0.0, -2.0]),
        # Half of a product to each factor.
        (lambda x: x[..., :1] * x[..., 1:2], [2.0, 3.0, 9.0], [3.0, 3.0, 0.0]),
    ],
)
def test_lrp_by_hand(function: Callable[[Tensor], Tensor], pixels: list[float], expected: list[float]) -> None:
    image = torch.tensor(pixels).view(1, 1, 1, 3)
    maps = attribute(Sum(function), image, 0, lrp).maps
    torch.testing.assert_close(maps.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_lrp_of_a_convolution_by_keywords() -> None:
    kernel = torch.tensor([1.0, -1.0, 0.0]).view(1, 1, 1, 3)
    net = Sum(lambda x: F.conv2d(input=x, weight=kernel, bias=torch.zeros(1), stride=1))
    maps = attribute(net, torch.tensor([3.0, 1.0, 5.0]).view(1, 1, 1, 3), 0, lrp).maps
    torch.testing.assert_close(maps.flatten(), torch.tensor([2.0, 0.0, 0.0]))


@pytest.mark.parametrize(("ours", "captums"), [(guided_backprop, GuidedBackprop), (deconvolution, Deconvolution)])
def test_guided_backpropagation_reaches_functions(ours: Callable[..., Tensor], captums: Callable[..., object]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)]
    net = nn.Sequential(*layers).eval()
    image = torch.randn(1, 3, 12, 12)
    with warnings.catch_warnings(action="ignore"):  # of its hooks
        theirs = captums(net).attribute(image, target=1).sum(dim=1)  # type: ignore[attr-defined]
    by_keyword, by_position = (lambda x: F.relu(input=x)), (lambda x: F.relu(x, True))
    for relu in (nn.ReLU(), F.relu, torch.relu, lambda x: x.relu_(), _forgetful, by_keyword, by_position):
        same = _Functional(layers, relu)
        torch.testing.assert_close(attribute(same, image, 1, ours).maps, theirs, rtol=1e-5, atol=1e-7)


class _Functional(nn.Module):
    def __init__(self, layers: list[nn.Module], relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, _, self.conv2, _, _, self.dense = layers
        self.relu = relu

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.relu(self.conv2(self.relu(self.conv1(images)))).flatten(1))


@pytest.mark.parametrize("method", [guided_backprop, deconvolution])
@pytest.mark.parametrize("activation", [F.gelu, F.silu, nn.Tanh(), nn.PReLU(), nn.Sigmoid(), lambda x: x.clamp(0, 6)])
def test_another_activation_is_refused(method: Callable[..., Tensor], activation: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="another activation than ReLU"):
        attribute(Net(_twice(activation)), torch.randn(1, 3, 12, 12), 0, method)


def test_a_sigmoid_beside_relus_is_a_gate() -> None:
    gated = Net(_twice(lambda values: values.relu() * values.mean(dim=(2, 3), keepdim=True).sigmoid()))
    assert attribute(gated, torch.randn(1, 3, 12, 12), 0, guided_backprop).maps.any()


@pytest.mark.parametrize("method", [deep_lift, lrp, guided_backprop, deconvolution])
def test_a_scripted_network_is_refused(method: Callable[..., Tensor]) -> None:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU()))
    with pytest.raises(UserError, match="cannot look into a scripted network"):
        attribute(scripted, torch.rand(1, 3, 2, 2), 0, method)


def test_a_clamp_at_zero_is_a_relu_and_other_ways_are_not_silent() -> None:
    """A ReLU written in other ways, alone and before a ReLU."""
    torch.manual_seed(0)

    def net(activation: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> Net:
        return Net(lambda net, images: last(net.conv2(activation(net.conv1(images)))))

    def masked(x: Tensor) -> Tensor:
        x = x.clone()
        x[x < 0] = 0
        return x

    images, plain = torch.rand(2, 3, 12, 12), net(F.relu, F.relu)
    zero, right, warned, refused = torch.zeros(()), "right", "warned", "refused"
    for activation, kind in (
        (lambda x: x.clamp(min=0), right),
        (lambda x: torch.clamp_min(x, 0), right),
        (lambda x: torch.clip(x, 0), right),
        (lambda x: x.clone().clamp_(min=0), right),
        (lambda x: x.clone().clamp_min_(0), right),
        (lambda x: torch.maximum(x, zero), refused),
        (lambda x: torch.fmax(zero, x), refused),
        (lambda x: -torch.minimum(-x, zero), refused),
        (lambda x: -(-x).clamp_max(0), refused),
        (lambda x: F.threshold_(x.clone(), 0.0, 0.0), refused),
        (lambda x: F.elu_(x.clone()), refused),
        (lambda x: x.clone().tanh_(), refused),
        (F.logsigmoid, refused),
        (torch.atan, refused),
        (lambda x: x.masked_fill(x < 0, 0), refused),
        (lambda x: torch.where(x > 0, x, zero), warned),
        (lambda x: x * (x > 0), warned),
        (lambda x: (x + x.abs()) / 2, warned),
        (masked, warned),
        (torch.square, warned),
    ):
        for alone in (True, False):
            other = net(activation, activation if alone else F.relu)
            other.load_state_dict(plain.state_dict())
            for method in (guided_backprop, deconvolution):
                if kind == refused or (kind == warned and alone):
                    with pytest.raises(UserError, match="another activation than ReLU"):
                        attribute(other, images, 1, method)
                    continue
                result = attribute(other, images, 1, method)
                if kind == right:
                    assert torch.equal(result.maps, attribute(plain, images, 1, method).maps)
                assert bool(result.warnings) == (kind == warned)
                assert kind != warned or "may act as a ReLU" in result.warnings[0]
