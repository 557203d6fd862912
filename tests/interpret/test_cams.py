"""Whose maps the CAM family looks at: by hand, and beside a peer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torchvision.models import ResNet as TorchvisionResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from cnnlab.interpret.attribution import attribute
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.network import HeadWrapper, ReceptiveField, default_target_layer, receptive_fields
from cnnlab.interpret.registry import named_method
from cnnlab.models.heads import Head
from cnnlab.models.layers import BatchNorm
from cnnlab.models.networks import Blocks, Branched, Classifier1, Deep, MultiHeadNet, ResNet
from cnnlab.utils.errors import UserError
from tests.conftest import DIGIT, HEADS
from tests.models.test_networks import MNIST, MULTI, build

SIDE = Head("side", ("left", "right"))
FAMILY = ("grad_cam", "hires_cam", "grad_cam_pp", "layer_cam", "score_cam", "layer_integrated_gradients")


def _net(**after: nn.Module) -> MultiHeadNet:
    """A convolution that answers the image and its negative, and other layers; z = sum of 2 B0 - B1 of their answer."""
    net = MultiHeadNet(
        (1, 28, 28), (SIDE,), {"conv": nn.Conv2d(1, 2, 3, padding="same"), **after, "flat": nn.Flatten()}
    )
    with torch.no_grad():
        kernels = net.get_submodule("stem.conv").get_parameter("weight").zero_()
        kernels[0, 0, 1, 1], kernels[1, 0, 1, 1] = 1, -1
        net.get_submodule("side.out").get_parameter("weight")[:] = torch.tensor([2.0, -1.0]).repeat_interleave(784)
    return net.eval()


@pytest.mark.parametrize(
    ("layer", "value", "name"),
    [(None, 2.0, "stem.relu"), ("stem.relu", 2.0, "stem.relu"), ("last_convolution", 2 / 784, "stem.conv")],
)
def test_grad_cam_of_the_maps_that_are_named(layer: str | None, value: float, name: str) -> None:
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 10, 10] = 1
    found = attribute(_net(relu=nn.ReLU()), image, 1, partial(grad_cam, target_layer=layer), SIDE.name)
    assert found.layer_map is not None
    assert found.layer_map.layer == name
    # z = sum of 2 ReLU(A0) - ReLU(A1): its gradient by A0 is 2 at one place of 784, by ReLU(A0) it is 2 at all.
    expected = torch.zeros(1, 28, 28)
    expected[0, 10, 10] = value
    torch.testing.assert_close(found.maps, expected)


@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize(
    ("after", "layer"),
    [
        ({"bn": BatchNorm(2), "relu": nn.ReLU()}, "stem.relu"),
        ({"pool": nn.MaxPool2d(1), "norm": nn.GroupNorm(1, 2), "act": nn.SiLU()}, "stem.act"),
        ({"relu": nn.ReLU(), "bn": BatchNorm(2)}, "stem.relu"),
        ({"bn": BatchNorm(2)}, "stem.conv"),
        ({"flatten": nn.Flatten(), "relu": nn.ReLU()}, "stem.conv"),
    ],
)
def test_all_of_the_family_look_at_what_the_activation_leaves(
    method: str, after: dict[str, nn.Module], layer: str
) -> None:
    found = attribute(_net(**after), torch.rand(2, 1, 28, 28), 1, named_method(method)[1], SIDE.name)
    assert found.layer_map is not None
    assert found.layer_map.layer == layer


@pytest.mark.parametrize(
    ("net", "head", "layer"),
    [
        (Branched(**MULTI), HEADS[0], "length.relu"),
        (Branched(**MULTI), HEADS[2], "angle.relu2"),
        (Branched(**MULTI, color_heads=["colour"]), HEADS[3], "colour.relu"),
        (Classifier1(**MNIST), DIGIT, "stem.relu"),
        (Deep(**MNIST), DIGIT, "stem.relu3"),
        (build("shared_v2", MULTI), HEADS[3], "stem.relu2"),
        (Blocks(**MNIST), DIGIT, "stem.relu3b"),
        (ResNet(**MULTI), HEADS[1], "stem.block3.relu"),  # after the addition
        (build("shared_figure5", MULTI), HEADS[3], "stem.relu1"),
    ],
)
def test_whose_maps_are_looked_at_in_our_networks(net: MultiHeadNet, head: Head, layer: str) -> None:
    channels = 1 if head is DIGIT else 3
    assert default_target_layer(HeadWrapper(net, head.name), torch.rand(1, channels, 28, 28)) == layer


@pytest.mark.parametrize("method", FAMILY)
def test_all_of_the_family_can_look_at_the_convolution(method: str) -> None:
    found = attribute(
        _net(relu=nn.ReLU()),
        torch.rand(2, 1, 28, 28),
        1,
        named_method(method, target_layer="last_convolution")[1],
        SIDE.name,
    )
    assert found.layer_map is not None
    assert found.layer_map.layer == "stem.conv"


class _Plain(nn.Module):
    """A network of one answer as others write them: `pooled` brings the maps of a convolution to its dense layers."""

    def __init__(self, pooled: Callable[[nn.Module, Tensor], Tensor], places: int) -> None:
        super().__init__()
        self.conv, self.pointwise, self.relu, self.gate = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.ReLU(),
        )
        self.bn, self.first, self.last, self.pooled = (
            nn.BatchNorm2d(4),
            nn.Linear(4 * places, 5),
            nn.Linear(5, 2),
            pooled,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.relu(self.first(self.pooled(self, images).flatten(1))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("pooled", "places", "layer", "size"),
    [
        # Of a ReLU that dense layers use as well hooks see the last run, which has no maps.
        (lambda net, x: net.relu(net.conv(x)), 64, "conv", (8, 8)),
        # A gate of one place (squeeze and excitation), and the mean over all places, are no maps.
        (
            lambda net, x: (y := net.conv(x)) * net.pointwise(net.gate(y.mean(dim=(2, 3), keepdim=True))),
            64,
            "conv",
            (8, 8),
        ),
        (lambda net, x: net.gate(nn.functional.adaptive_avg_pool2d(net.conv(x), 1)), 1, "conv", (8, 8)),
        # BatchNorm alone does not make another layer of a convolution; a function's answer has the next layer's name.
        (lambda net, x: net.gate(nn.functional.max_pool2d(net.bn(net.conv(x)), 2)), 16, "conv", (8, 8)),
        (lambda net, x: net.gate(net.conv(x).abs()), 64, "gate", (8, 8)),
        (lambda net, x: nn.functional.max_pool2d(net.bn(net.conv(x).abs()), 2), 16, "bn:input", (8, 8)),
    ],
)
def test_networks_as_others_write_them(
    pooled: Callable[[nn.Module, Tensor], Tensor], places: int, layer: str, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    net, images = _Plain(pooled, places).eval(), torch.rand(2, 3, 8, 8)
    for method in FAMILY:
        found = attribute(net, images, 1, named_method(method)[1])
        assert found.layer_map is not None
        assert (found.layer_map.layer, found.layer_map.values.shape[1:]) == (layer, size)
    rows, _ = receptive_fields(HeadWrapper(net), layer, images)
    assert rows == ReceptiveField(0.5, 1.0, 3.0)  # 3 x 3 kernels around each pixel


def test_a_layer_without_maps_or_of_another_head_is_one_line() -> None:
    image = torch.zeros(1, 3, 28, 28)
    for layer, message in (
        ("length.con", r"there is no layer 'length\.con'; did you mean 'length\.conv'"),
        ("angle.conv1", r"head 'length' does not depend on layer 'angle\.conv1'"),
        ("length.flatten", r"layer 'length\.flatten' has no maps"),
    ):
        with pytest.raises(UserError, match=message):
            attribute(Branched(**MULTI), image, 1, partial(grad_cam, target_layer=layer), "length")
    with pytest.raises(UserError, match=r"there is no convolution before the answer"):
        attribute(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2), 1, grad_cam)


def test_maps_are_as_they_were_where_the_next_layer_works_in_place() -> None:
    torch.manual_seed(0)
    net, images = _net(relu=nn.ReLU(inplace=True)), torch.rand(2, 1, 28, 28)
    looked = {
        method: attribute(net, images, 1, named_method(method, target_layer="last_convolution")[1], SIDE.name).maps
        for method in FAMILY
    }
    net.get_submodule("stem.relu").inplace = False
    for method, maps in looked.items():
        torch.testing.assert_close(
            attribute(net, images, 1, named_method(method, target_layer="last_convolution")[1], SIDE.name).maps, maps
        )
    assert looked["grad_cam"].any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_residual_network_of_torchvision_is_looked_at_where_it_is_usual(block: type[BasicBlock | Bottleneck]) -> None:
    torch.manual_seed(0)
    net, images = TorchvisionResNet(block, [1, 1, 1, 1]).eval(), torch.rand(2, 3, 64, 64)
    found = attribute(net, images, 3, grad_cam).layer_map
    assert found is not None
    assert found.layer == "layer4"  # a block uses one ReLU several times, so none of them has the name of its maps
    peer = LayerGradCam(net, net.layer4).attribute(images, target=3, relu_attributions=True)
    torch.testing.assert_close(found.values, peer[:, 0].detach())
    for method in FAMILY:
        assert attribute(net, images, 3, named_method(method)[1]).maps.shape == (2, 64, 64)
        with pytest.raises(UserError, match=r"layer 'layer4\.0\.relu' runs several times: name another, or its block"):
            attribute(net, images, 3, named_method(method, target_layer="layer4.0.relu")[1])
