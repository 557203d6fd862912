"""The networks of the reports: totals to the unit, names, Keras's defaults, refused settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from cnnlab.data.lines import class_head
from cnnlab.interpret.network import leaf_modules
from cnnlab.models.heads import Head
from cnnlab.models.layers import (
    BatchNorm,
    Dropout,
    Flatten,
    downsample_layers,
    max_pool,
    output_shape,
    parameter_counts,
    set_bn_momentum,
)
from cnnlab.models.networks import Branched, Classifier1, Deep, MultiHeadNet
from cnnlab.utils.cli import CONF
from tests.conftest import DIGIT, HEADS

NETWORKS = sorted(path.stem for path in (CONF / "net").glob("*.yaml"))
MNIST: dict[str, Any] = {"image_shape": (1, 28, 28), "heads": (DIGIT,)}
LINES: dict[str, Any] = {"image_shape": (3, 28, 28), "heads": (class_head(),)}
MULTI: dict[str, Any] = {"image_shape": (3, 28, 28), "heads": HEADS}


def build(name: str, data: dict[str, Any], **settings: Any) -> MultiHeadNet:
    """The network of `conf/net/<name>.yaml` with some settings changed."""
    config = OmegaConf.merge(OmegaConf.load(Path(CONF) / "net" / f"{name}.yaml"), settings)
    net: MultiHeadNet = instantiate(config, _partial_=True, _convert_="all")(**data)
    return net


@pytest.mark.parametrize(
    ("name", "data", "settings", "total", "non_trainable"),
    [
        ("classifier1", MNIST, {}, 1_274_570, 64),
        ("classifier1", LINES, {}, 11_933_536, 64),
        ("classifier1", MNIST, {"kernel_size": 5}, 1_509_322, 64),
        ("classifier1", MNIST, {"dense": "flat"}, 3_977_930, 64),
        ("classifier1", LINES, {"dense": "flat"}, 4_069_216, 64),
        ("deep", MNIST, {}, 4_823_050, 256),
        ("deep", LINES, {}, 4_911_776, 256),
        ("shared_figure5", MULTI, {}, 1_386_703, 64),
        ("shared_v1", MULTI, {}, 497_363, 0),
        ("shared_v2", MULTI, {}, 273_253, 0),
        ("shared_v3", MULTI, {}, 126_719, 0),
        ("branched", MULTI, {}, 98_927, 512),
        ("branched_standard", MULTI, {}, 98_927, 512),
        # The common stem has one channel instead of three, the colour head a stem of its own.
        ("branched", MULTI, {"color_heads": ["colour"]}, 98_927 - 2 * 9 * 32 + 1_024, 512 + 64),
        ("blocks", MNIST, {}, 510_906, 2 * 2 * (16 + 64 + 192)),
        # Six convolutions, their BatchNorms, and 64 means to 15 units.
        (
            "blocks",
            MULTI,
            {"filters": [16, 32, 64], "pooling": "mean"},
            9 * (3 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 112 * (1 + 4) + 64 * 15 + 15,
            448,
        ),
        # Seven 3 x 3 convolutions without biases, two 1 x 1 with, their BatchNorms, and 7 x 7 x 64 places to 15 units.
        (
            "resnet",
            MULTI,
            {},
            9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
            + (16 * 32 + 32 + 32 * 64 + 64)
            + 4 * 240
            + 49 * 64 * 15
            + 15,
            480,
        ),
    ],
)
def test_totals_are_the_reports(
    name: str, data: dict[str, Any], settings: dict[str, Any], total: int, non_trainable: int
) -> None:
    net = build(name, data, **settings)
    assert parameter_counts(net) == {"total": total, "trainable": total - non_trainable, "non_trainable": non_trainable}
    output = net.eval()(torch.rand(2, *data["image_shape"]))
    assert {key: tuple(value.shape) for key, value in output.items()} == {
        head.name: (2, head.units) for head in data["heads"]
    }


@pytest.mark.parametrize("kind", ["avg", "blur", "max"])
def test_halving_against_sums_by_hand(kind: str) -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    halved = torch.nn.Sequential(*downsample_layers(kind).values())(ramp)
    assert halved.shape == (1, 1, 4, 4)
    if kind == "blur":  # [1, 2, 1] x [1, 2, 1] / 16 around every second place
        weights = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
        assert halved[0, 0, 1, 2].item() == pytest.approx((weights * ramp[0, 0, 1:4, 3:6]).sum().item())
    else:
        of_four = ramp[0, 0, 2:4, 4:6]
        assert halved[0, 0, 1, 2] == (of_four.mean() if kind == "avg" else of_four.max())


def test_a_mean_over_places_answers_the_same_wherever_something_lies() -> None:
    net = build("blocks", MULTI, filters=[8, 16], downsample="blur", pooling="mean", dropout=0).eval()
    image = torch.zeros(1, 3, 28, 28)
    image[0, 0, 9:14, 9:14] = torch.rand(5, 5)
    with torch.no_grad():
        here, there = net(image), net(image.roll((4, 6), dims=(2, 3)))  # by whole steps of the last block
    for name in net.head_names:
        torch.testing.assert_close(here[name], there[name], atol=1e-5, rtol=0)


def test_a_residual_block_adds_its_input() -> None:
    net = build("resnet", MULTI).eval()
    block = net.get_submodule("stem.block1")
    maps = torch.rand(2, 16, 28, 28)
    with torch.no_grad():
        block.get_submodule("bn_b").get_parameter("weight").zero_()
        torch.testing.assert_close(block(maps), maps)  # what is added to it is 0
    assert [output_shape(net.stem[:last], (3, 28, 28)) for last in (4, 5, 6)] == [
        (16, 28, 28),
        (32, 14, 14),
        (64, 7, 7),
    ]


def test_stride_takes_the_place_of_pooling() -> None:
    pooled, strided = Classifier1(**MNIST), Classifier1(**MNIST, downsample="stride")
    assert parameter_counts(pooled) == parameter_counts(strided)
    assert "stem.pool" not in dict(strided.named_modules())


def test_only_hue_heads_see_a_colour() -> None:
    net = Branched(**MULTI, color_heads=["colour"]).eval()
    red = torch.zeros(1, 3, 28, 28)
    red[0, 0, 10:20, 10:20] = torch.rand(10, 10)
    with torch.no_grad():
        answers = net(red), net(red.flip(1))  # blue
    same = {name: torch.equal(answers[0][name], answers[1][name]) for name in net.head_names}
    assert same == {"length": True, "width": True, "angle": True, "colour": False}


def _ran(net: MultiHeadNet, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """{layer: the shape of its output} in the order they run; an assertion where one runs twice."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, output: Tensor) -> None:
        assert name not in shapes
        shapes[name] = tuple(output.shape[1:])

    for name, layer in leaf_modules(net).items():
        layer.register_forward_hook(lambda _m, _i, output, name=name: record(name, output))
    net.eval()(torch.zeros(1, *image_shape))
    return shapes


def test_layers_have_the_names_that_users_say_and_shapes() -> None:
    shapes = _ran(Branched(**MULTI), (3, 28, 28))
    assert shapes["stem.pool"] == (32, 9, 9)
    assert shapes["angle.conv2"] == (64, 9, 9)
    assert shapes["angle.out"] == (12,)


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (3, 24, 40)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_for_any_image_and_any_heads(name: str, image_shape: tuple[int, ...]) -> None:
    heads = (DIGIT, Head("shade", ("dark", "light")))
    net = build(name, {"image_shape": image_shape, "heads": heads}).eval()
    output = net(torch.rand(2, *image_shape))
    assert {key: tuple(value.shape) for key, value in output.items()} == {"digit": (2, 10), "shade": (2, 1)}


@pytest.mark.parametrize("net", [Branched(**MULTI), Deep(**LINES), Classifier1(**MNIST), build("shared_v2", MULTI)])
def test_every_activation_is_its_own_module_and_not_in_place(net: MultiHeadNet) -> None:
    _ran(net, MNIST["image_shape"] if "digit" in net.head_names else MULTI["image_shape"])
    relus = [module for module in net.modules() if isinstance(module, torch.nn.ReLU)]
    assert relus
    assert not any(relu.inplace for relu in relus)


def test_keras_defaults() -> None:
    net = Classifier1(**MNIST)
    conv, out = net.get_submodule("stem.conv"), net.get_submodule("digit.out")
    assert conv.get_parameter("weight").abs().max() <= math.sqrt(6 / (49 * 1 + 49 * 32))
    assert conv.get_parameter("weight").abs().max() > 0.95 * math.sqrt(6 / (49 * 1 + 49 * 32))
    assert out.get_parameter("weight").abs().max() <= math.sqrt(6 / (1024 * 121 + 10))
    assert conv.get_parameter("bias").abs().max() == 0
    norm = net.get_submodule("stem.bn")
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_version_3_draws_its_heads_from_a_narrow_normal() -> None:
    torch.manual_seed(0)
    net = build("shared_v3", MULTI)
    assert net.get_submodule("angle.dense1").get_parameter("weight").std().item() == pytest.approx(0.01, rel=0.05)
    assert net.get_submodule("angle.dense1").get_parameter("bias").abs().max() > 0
    assert net.get_submodule("stem.conv1").get_parameter("bias").abs().max() == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "classifier1",
            {"kernel_size": 29},
            "its layers do not fit an input of 1 x 28 x 28: .*Kernel size: \\(29 x 29\\)",
        ),
        ("classifier1", {"kernel_size": 0}, "kernel_size=0 must be at least 1"),
        ("classifier1", {"kernel_size": 28}, "its layers do not fit an input of 1 x 28 x 28: .*too small"),
        ("classifier1", {"filters": -1}, "filters=-1 must be at least 1"),
        ("classifier1", {"dense": "per_pixel"}, "dense=per_pixel: choose one of pixel, flat"),
        ("classifier1", {"dropout": 1.0}, "dropout=1 drops everything"),
        ("deep", {"dropout": [0.1, 0.1]}, "dropout"),
        ("branched", {"filters": 0}, "filters=0"),
        ("branched", {"color_heads": ["color"]}, "color_heads=color: choose one of digit"),
        ("blocks", {"downsample": "stride"}, "downsample=stride: choose one of max, avg, blur"),
        ("blocks", {"pooling": "max"}, "pooling=max: choose one of flatten, mean"),
        ("blocks", {"filters": [8, 0]}, "filters=0 must be at least 1"),
        ("blocks", {"dropout": 2}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, MNIST, **settings)


def test_the_output_shape_is_found_without_a_trace() -> None:
    stem = Branched(**MULTI).stem
    before, state = {key: value.clone() for key, value in stem.state_dict().items()}, torch.get_rng_state()
    assert output_shape(stem, (3, 28, 28)) == (32, 9, 9)
    assert all(torch.equal(before[key], value) for key, value in stem.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_flatten_is_in_the_order_of_keras() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)  # channel 0 holds 0..3, channel 1 holds 4..7
    assert Flatten()(maps).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    last = maps.to(memory_format=torch.channels_last)
    assert Flatten()(last).data_ptr() == last.data_ptr()  # a view, no copy


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_its_share_and_scales_the_rest(memory_format: torch.memory_format) -> None:
    values = torch.ones(64, 50, 25, 25).contiguous(memory_format=memory_format).requires_grad_()
    layer = Dropout(0.25)
    torch.manual_seed(0)
    out = layer(values)
    out.sum().backward()
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    # 2,000,000 draws of a quarter: standard deviation 0.0003. Whatever way one looks at them.
    dropped = (out == 0).float()
    assert dropped.mean().item() == pytest.approx(0.25, abs=0.0015)
    assert (dropped[1:] * dropped[:-1]).mean().item() == pytest.approx(1 / 16, abs=0.0015)
    assert (dropped[..., 1:] * dropped[..., :-1]).mean().item() == pytest.approx(1 / 16, abs=0.0015)
    assert (dropped[:, 1:] * dropped[:, :-1]).mean().item() == pytest.approx(1 / 16, abs=0.0015)
    assert values.grad is not None
    assert torch.equal(values.grad, out)  # of ones: the same mask, the same scale
    torch.manual_seed(0)
    assert torch.equal(layer(values), out)
    assert layer.eval()(values) is values


def test_batch_norm_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)
    for parameter in ours.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    maps = torch.rand(3, 4, 5, 5)
    for training, dtype in ((True, torch.float32), (False, torch.float32), (False, torch.bfloat16)):
        found = []
        for layer in (ours, theirs):
            values = maps.detach().clone().to(dtype).requires_grad_()
            layer.train(training)(values).square().sum().backward()
            found.append([values.grad, layer.weight.grad, layer.bias.grad, layer.running_var])
        torch.testing.assert_close(found[0], found[1])


def test_bn_momentum_is_torchs() -> None:
    net = Classifier1(**MNIST)
    set_bn_momentum(net, 0.1)
    norm = net.get_submodule("stem.bn")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    norm.train()(torch.full((2, 32, 1, 1), 5.0))
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == pytest.approx([0.9 * 0 + 0.1 * 5] * 32)
    with pytest.raises(ValueError, match=r"bn_momentum=0 is not in \(0, 1\]"):
        set_bn_momentum(net, 0)


def test_a_dropout_of_nearly_everything_stays_finite() -> None:
    layer = Dropout(0.999999)
    dropped = layer(torch.ones(1_000_000))
    assert torch.isfinite(dropped).all()
    assert 0 < (dropped > 0).float().mean() < 1e-4  # 1 in 65,536


@pytest.mark.parametrize(("stride", "size"), [(3, (28, 28)), (2, (9, 9)), (2, (28, 31)), (3, (32, 24))])
def test_overlapping_poolings_see_every_pixel(stride: int, size: tuple[int, int]) -> None:
    pixels = torch.eye(size[0] * size[1]).view(-1, 1, *size)  # one bright pixel each
    plain, whole = (max_pool(stride, size, overlapping)(pixels) for overlapping in (False, True))
    assert whole.shape == plain.shape
    assert whole.flatten(1).any(dim=1).all()
    kept = (size[0] // stride * stride) * (size[1] // stride * stride)
    assert int(plain.flatten(1).any(dim=1).sum()) == kept  # what the usual pooling sees


def test_branched_standard_sees_the_last_corner() -> None:
    net = build("branched_standard", MULTI)
    corner = torch.zeros(2, 3, 28, 28)
    corner[1, :, 27, 27] = 1
    features = net.eval().get_submodule("stem")(corner)
    assert not torch.equal(features[0, :, 8, 8], features[1, :, 8, 8])


def test_what_pads_the_maps_of_branched_standard_is_what_nothing_gives() -> None:
    """Where black gives less than is usual, as by hand here, a black image is the same to every place of a
    convolution's maps, the border with its padding included; in the report's order it is not."""
    spread = {}
    for name in ("branched", "branched_standard"):
        net = build(name, MULTI).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.running_mean, 0.5)
        with torch.no_grad():
            branch = net.get_submodule("angle")
            maps = branch.get_submodule("conv1")(net.get_submodule("stem")(torch.zeros(1, 3, 28, 28)))
        spread[name] = float((maps - maps[:, :, 4:5, 4:5]).abs().max())
    assert spread["branched_standard"] == 0
    assert spread["branched"] > 0.1


@pytest.mark.parametrize(
    ("settings", "rest"), [({}, ["bn", "relu", "pool"]), ({"relu_before_bn": True}, ["relu", "bn", "pool"])]
)
def test_branched_has_the_standard_order_or_the_reports(settings: dict[str, bool], rest: list[str]) -> None:
    net = Branched(**MULTI, overlapping_pool=True, **settings)
    assert [name for name, _ in net.get_submodule("stem").named_children()] == ["conv", *rest, "dropout"]
    first = [f"{name}1" for name in ["conv", *rest] if name != "pool"]
    second = [name if name == "pool" else f"{name}2" for name in ["conv", *rest]]
    names = [name for name, _ in net.get_submodule("angle").named_children()]
    assert names == [*first, *second, "dropout", "flatten", "out"]
