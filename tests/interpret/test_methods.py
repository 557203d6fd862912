"""Heatmaps, filters and activations against numbers worked out by hand, and no trace of having looked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnlab.interpret.activations import activations
from cnnlab.interpret.attribution import LayerMap, Method, attribute, to_image
from cnnlab.interpret.feature_visualization import AscentConfig, visualize_channels, visualize_classes
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.methods.gradients import integrated_gradients, saliency
from cnnlab.interpret.methods.perturbations import occlusion
from cnnlab.interpret.methods.rules import guided_grad_cam
from cnnlab.interpret.network import (
    HeadWrapper,
    forward_until,
    last_convolution,
    leaf_modules,
    path_to_head,
    receptive_fields,
)
from cnnlab.interpret.registry import named_method
from cnnlab.models.heads import Head
from cnnlab.models.networks import Branched, Classifier1, Deep, MultiHeadNet
from cnnlab.utils.cli import CONF
from cnnlab.utils.errors import UserError
from tests.conftest import DIGIT, HEADS
from tests.models.test_networks import LINES, MNIST, MULTI, build

SIDE = Head("side", ("left", "right"))
FEW = {
    "shapley_sampling": {"n_samples": 2},
    "kernel_shap": {"n_samples": 60},
    "lime": {"n_samples": 60},
    "rise": {"n_samples": 40},
}
METHODS: dict[str, Method] = {
    name: named_method(name, **FEW.get(name, {}))[1]
    for name in sorted(path.stem for path in (CONF / "method").iterdir())
}
PLAIN = AscentConfig(steps=20, rate=0.1, bounded=False, fourier=False, jitter=0)


def _by_hand() -> MultiHeadNet:
    """Two channels, the image itself and the image one pixel to the right; z = sum of 2 A0 - A1."""
    stem = {"conv": nn.Conv2d(1, 2, 3, padding="same"), "flatten": nn.Flatten()}
    net = MultiHeadNet((1, 28, 28), (SIDE,), stem).eval()
    with torch.no_grad():
        kernels = net.get_submodule("stem.conv").get_parameter("weight").zero_()
        kernels[0, 0, 1, 1] = 1
        kernels[1, 0, 1, 0] = 1  # its left neighbour
        weights = net.get_submodule("side.out").get_parameter("weight")
        weights[0, : 28 * 28] = 2
        weights[0, 28 * 28 :] = -1
    return net


def _image(net: MultiHeadNet) -> Tensor:
    return torch.rand(1, 1 if "digit" in net.head_names else 3, 28, 28)


def test_grad_cam_of_both_signs_of_a_binary_head() -> None:
    image = torch.zeros(2, 1, 28, 28)
    image[:, 0, 10, 10] = 1
    found = attribute(_by_hand(), image, torch.tensor([1, 0]), grad_cam, SIDE.name)
    # The gradient of z by A0 is 2 everywhere and by A1 -1: CAM = ReLU(2 A0 - A1) for "right", and
    # ReLU(-2 A0 + A1) for "left".
    right, left = torch.zeros(28, 28), torch.zeros(28, 28)
    right[10, 10] = 2
    left[10, 11] = 1
    assert found.layer_map is not None
    assert found.layer_map.layer == "stem.conv"
    torch.testing.assert_close(found.maps, torch.stack([right, left]))
    torch.testing.assert_close(found.layer_map.values, found.maps)


def test_the_other_methods_on_a_linear_network() -> None:
    net = _by_hand()
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 10, 10] = 0.5
    one, zero = torch.tensor([1]), torch.tensor([0])
    inside = (slice(None), slice(1, 27), slice(1, 27))
    # A pixel counts 2 in A0 and -1 in A1: the score's gradient is 1 (at the right edge 2).
    torch.testing.assert_close(attribute(net, image, one, saliency, SIDE.name).maps[inside], torch.ones(1, 26, 26))
    shares = torch.zeros(1, 28, 28)
    shares[0, 10, 10] = 0.5  # gradient times the way from black
    torch.testing.assert_close(attribute(net, image, one, integrated_gradients, SIDE.name).maps, shares)
    torch.testing.assert_close(attribute(net, image, zero, integrated_gradients, SIDE.name).maps, -shares)
    fall = attribute(net, image, one, occlusion, SIDE.name).maps[0]
    assert fall[10, 10].item() == pytest.approx(0.5)  # every window over it takes 0.5 away
    assert fall[20, 20].item() == 0
    guided = attribute(net, image, one, guided_grad_cam, SIDE.name).maps[0]
    assert guided[10, 10].item() == pytest.approx(2 * 0.5 * 1)  # Grad-CAM times the gradient
    assert guided.count_nonzero() == 1


@pytest.mark.parametrize(
    ("net", "head", "layer"),
    [
        (Branched(**MULTI), HEADS[2], "angle.conv2"),
        (Branched(**MULTI), HEADS[0], "length.conv"),
        (Classifier1(**MNIST), DIGIT, "stem.conv"),  # its dense layer at every pixel does not count
        (Deep(**LINES), LINES["heads"][0], "stem.conv3"),
        (build("shared_v2", MULTI), HEADS[3], "stem.conv2"),
        (Branched(**MULTI, color_heads=["colour"]), HEADS[3], "colour.conv"),
    ],
)
def test_the_last_convolution_before_a_head(net: MultiHeadNet, head: Head, layer: str) -> None:
    assert last_convolution(HeadWrapper(net, head.name), _image(net)) == layer


@pytest.mark.parametrize(
    ("net", "head", "layer", "start", "step", "places"),
    [
        (Classifier1(**MNIST), DIGIT, "stem.conv", 3.5, 1, 22),  # 7 x 7, valid
        (Classifier1(**MNIST), DIGIT, "stem.pool", 4.0, 2, 11),
        (Branched(**MULTI), HEADS[2], "angle.conv2", 1.5, 3, 9),  # after pooling by 3
        (Deep(**LINES), LINES["heads"][0], "stem.conv3", 3.0, 4, 6),
        (build("shared_v2", MULTI), HEADS[0], "stem.conv2", 5.0, 2, 10),  # 5 x 5, valid, after a pooling
        (Branched(**MULTI, color_heads=["colour"]), HEADS[3], "colour.conv", 1.5, 3, 9),  # its own stem alone
    ],
)
def test_a_map_is_neither_shifted_nor_stretched(
    net: MultiHeadNet, head: Head, layer: str, start: float, step: float, places: int
) -> None:
    middles = start + step * torch.arange(places)  # where each place looks
    coarse = middles.expand(1, places, places)
    image = to_image(LayerMap(layer, coarse), HeadWrapper(net, head.name), _image(net))[0, 14]
    pixels = torch.arange(28) + 0.5
    torch.testing.assert_close(image, pixels.clamp(middles[0], middles[-1]))


def test_ascent_on_a_linear_filter_recovers_it() -> None:
    torch.manual_seed(0)
    net = MultiHeadNet((3, 28, 28), (DIGIT,), {"flatten": nn.Flatten()})
    weights = net.get_submodule("digit.out").get_parameter("weight").detach()
    channels = torch.tensor([7, 2])
    found = visualize_channels(net, "digit.out", channels, (3, 28, 28), PLAIN)
    cosine = torch.cosine_similarity(found.images.flatten(1), weights[channels])
    assert cosine.min() >= 0.99
    expected = (found.images.flatten(1) * weights[channels]).sum(dim=1)  # the bias is 0
    torch.testing.assert_close(found.activation, expected)
    assert not found.dead.any()


def test_ascent_on_a_binary_head_has_both_signs() -> None:
    found = visualize_classes(_by_hand(), SIDE, (1, 28, 28), PLAIN)
    assert (found.images[1, 0, 1:27, 1:27] > 0).all()
    assert (found.images[0, 0, 1:27, 1:27] < 0).all()
    assert (found.activation > 0).all()


@pytest.mark.parametrize("ascent", [AscentConfig(steps=30), AscentConfig(steps=30, fourier=False)])
def test_bounded_ascent_climbs_and_stays_a_possible_image(ascent: AscentConfig) -> None:
    torch.manual_seed(0)
    net = Branched(**MULTI).eval()
    channels = torch.arange(8)
    before = visualize_channels(net, "angle.conv1", channels, (3, 28, 28), AscentConfig(steps=1, rate=1e-9)).activation
    found = visualize_channels(net, "angle.conv1", channels, (3, 28, 28), ascent)
    assert (found.activation > before).all()
    assert 0 <= found.images.min() <= found.images.max() <= 1


def test_a_channel_that_never_answers_is_dead() -> None:
    stem = {"conv": nn.Conv2d(1, 3, 3), "relu": nn.ReLU(), "flatten": nn.Flatten()}
    net = MultiHeadNet((1, 28, 28), (DIGIT,), stem)
    with torch.no_grad():
        bias = net.get_submodule("stem.conv").get_parameter("bias")
        bias[:] = torch.tensor([-100.0, 100.0, 0.1])
    images = torch.rand(4, 1, 28, 28)
    (answer,) = activations(net, ["stem.relu"], images, images)
    assert answer.dead.tolist() == [True, False, False]
    assert answer.saturated.tolist() == [False, True, False]
    assert visualize_channels(net, "stem.relu", torch.arange(3), (1, 28, 28), PLAIN).dead.tolist() == [
        True,
        False,
        False,
    ]
    assert visualize_channels(net, "stem.relu", torch.arange(3), (1, 28, 28), AscentConfig(steps=3)).dead.tolist()[0]


def test_a_layer_without_maps_to_show_is_one_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.lstm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.lstm(self.used(images).flatten(1))[0]  # type: ignore[no-any-return]

    images = torch.rand(2, 1, 1, 4)
    for layer in ("unused", "lstm"):
        with pytest.raises(UserError, match=f"layer '{layer}' does not run, or answers no tensor"):
            activations(Odd(), [layer], images, images)


def test_features_are_the_same_in_inference_mode_and_after_it() -> None:
    net, found = nn.Sequential(nn.Conv2d(1, 2, 3)), []
    for inference in (True, False):
        with torch.inference_mode(inference):
            found.append(visualize_channels(net, "0", None, (1, 9, 11), AscentConfig(steps=1)).images)
    assert torch.equal(*found)


def test_activations_are_a_hooks_and_the_most_active_are_named() -> None:
    torch.manual_seed(0)
    net = Branched(**MULTI).eval()
    images = torch.rand(3, 3, 28, 28)
    seen: dict[str, Tensor] = {}
    names = ["stem.relu", "angle.conv2", "angle.out"]
    for name in names:
        layer = net.get_submodule(name)
        layer.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output.detach()))
    with torch.no_grad():
        net(images)
    for answer in activations(net, names, images, images):
        expected = seen[answer.layer]
        assert torch.equal(answer.maps.reshape(expected.shape), expected)
    wide = activations(Branched(**MULTI, filters=40).eval(), ["angle.conv2"], images, images)[0]  # 80 channels
    means = wide.maps.mean(dim=(0, 2, 3))
    top = wide.shown
    assert set(top.tolist()) == set(means.topk(32).indices.tolist())
    assert top.tolist() == sorted(top.tolist())


@pytest.mark.parametrize(
    ("name", "data", "settings"),
    [
        *((name, MULTI, {}) for name in ("branched", "shared_figure5", "shared_v1", "shared_v2", "shared_v3")),
        ("deep", LINES, {}),
        ("resnet", MULTI, {}),
        ("classifier1", MNIST, {}),
        ("classifier1", MNIST, {"dense": "flat"}),
    ],
)
def test_every_layer_and_head_of_every_network_can_be_explained(
    name: str, data: dict[str, Any], settings: dict[str, Any]
) -> None:
    net, shape = build(name, data, **settings), data["image_shape"]
    images = torch.rand(2, *shape)
    found = activations(net, list(leaf_modules(net)), images, images)
    assert [answer.layer for answer in found] == list(leaf_modules(net))
    for answer in found:
        picture = visualize_channels(net, answer.layer, torch.tensor([0]), shape, AscentConfig(steps=2))
        assert picture.images.shape == (1, *shape)
    for head in data["heads"]:
        assert attribute(net, images, torch.tensor([0, 1]), grad_cam, head.name).maps.shape == (2, 28, 28)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_heatmap_does_not_depend_on_its_batch(method: Method) -> None:
    torch.manual_seed(0)
    net = Branched(**MULTI).eval()
    images, targets = torch.rand(5, 3, 28, 28), torch.tensor([3, 1, 4, 1, 5])
    together = attribute(net, images, targets, method, HEADS[2].name).maps
    alone = torch.cat(
        [attribute(net, images[i : i + 1], targets[i : i + 1], method, HEADS[2].name).maps for i in range(5)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_filter_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    net = Branched(**MULTI).eval()
    ascent = AscentConfig(steps=5)
    together = visualize_channels(net, "stem.conv", torch.arange(6), (3, 28, 28), ascent).images
    alone = visualize_channels(net, "stem.conv", torch.tensor([4]), (3, 28, 28), ascent).images
    torch.testing.assert_close(together[4:5], alone, rtol=1e-3, atol=1e-3)


def _everything(net: nn.Module) -> dict[str, Any]:
    return {
        "state": {key: value.clone() for key, value in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "requires_grad": [parameter.requires_grad for parameter in net.parameters()],
        "grads": [parameter.grad for parameter in net.parameters()],
        "hooks": [
            {k: dict(v) for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)}
            for module in net.modules()
        ],
        "random": torch.get_rng_state(),
    }


def _assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert all(torch.equal(before["state"][key], after["state"][key]) for key in before["state"])
    assert torch.equal(before["random"], after["random"])
    for what in ("modes", "requires_grad", "grads", "hooks"):
        assert before[what] == after[what], what


IMAGES, TARGETS = torch.rand(2, 3, 28, 28), torch.tensor([1, 2])
LOOKS: dict[str, Callable[[nn.Module], object]] = {
    **{n: lambda net, m=m: attribute(net, IMAGES, TARGETS, m, HEADS[2].name) for n, m in METHODS.items()},  # type: ignore[misc]
    "activations": lambda net: activations(net, ["stem.relu"], IMAGES, IMAGES),
    "visualize_channels": lambda net: visualize_channels(
        net, "stem.conv", torch.arange(2), (3, 28, 28), AscentConfig(steps=2)
    ),
    "visualize_classes": lambda net: visualize_classes(net, HEADS[2], (3, 28, 28), AscentConfig(steps=2)),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_looking_leaves_no_trace(look: str, fails: bool) -> None:
    net = Branched(**MULTI).train()
    net.get_submodule("angle").eval()
    net.get_submodule("stem.conv").get_parameter("bias").requires_grad_(False)
    net.get_submodule("stem.pool").register_forward_hook(lambda *_: None)

    def refuse(*_: object) -> None:
        raise RuntimeError("a failure on the way")

    if fails:
        net.get_submodule("stem.conv").register_forward_hook(refuse)
    before = _everything(net)
    if fails:
        with pytest.raises(RuntimeError, match="on the way"):
            LOOKS[look](net)
    else:
        LOOKS[look](net)
    _assert_same(before, _everything(net))
    assert not IMAGES.requires_grad


def test_a_wrong_layer_lists_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"no layer 'stem.cnv'; did you mean 'stem.conv'\?"):
        activations(Branched(**MULTI), ["stem.cnv"], IMAGES, IMAGES)


def _watched() -> tuple[MultiHeadNet, list[str]]:
    """A network of four heads, and the names of its layers as they run."""
    net, ran = Branched(**MULTI).eval(), []
    for name, layer in leaf_modules(net).items():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    return net, ran


def test_output_of_does_not_run_what_comes_after() -> None:
    net, ran = _watched()
    assert forward_until(net, "stem.pool", IMAGES).shape == (2, 32, 9, 9)
    assert ran == ["stem.conv", "stem.bn", "stem.relu", "stem.pool"]


def test_the_branches_of_other_heads_do_not_run() -> None:
    net, ran = _watched()
    forward_until(net, "colour.conv", IMAGES)
    assert ran[-2:] == ["stem.dropout", "colour.conv"]
    ran.clear()
    alone = HeadWrapper(net, HEADS[2].name)(IMAGES)
    assert {name.partition(".")[0] for name in ran} == {"stem", "angle"}
    torch.testing.assert_close(alone, net(IMAGES)["angle"])


class _Foreign(nn.Module):
    """Somebody else's network: layers of other names, two heads in a dict, average pooling and dilation, and a third
    head that is nobody's business. `used` and `unused` run in another order than they are named."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(3, 4, 3)
        self.late = nn.Conv2d(8, 8, 3, dilation=2)
        self.early = nn.Conv2d(3, 8, 4, stride=2)
        self.mean, self.relu = nn.AvgPool2d(2), nn.ReLU()
        self.side_out, self.shade_out = nn.Linear(8 * 3 * 3, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        other = self.unused(images).mean(dim=(2, 3))
        features = self.relu(self.late(self.mean(self.early(images))))
        return {"side": self.side_out(features.flatten(1)), "shade": self.shade_out(other)}


def test_a_network_of_other_names_and_layers_is_explained() -> None:
    torch.manual_seed(0)
    net, images, shade = _Foreign(), torch.rand(3, 3, 32, 32), Head("shade", ("dark", "grey", "light"))
    assert path_to_head(HeadWrapper(net, SIDE.name), images) == ["early", "mean", "late", "relu", "side_out"]
    assert last_convolution(HeadWrapper(net, shade.name), images) == "unused"
    rows, _ = receptive_fields(HeadWrapper(net, SIDE.name), "late", images)
    # early: kernel 4, stride 2, so from 2 pixels on by 2; mean: between two of them, by 4; late: 2 x 2 places on.
    assert (rows.start, rows.step) == (2 + 1 + 2 * 4, 4)
    for method in METHODS.values():
        found = attribute(net, images, torch.tensor([0, 1, 1]), method, SIDE.name)
        assert found.maps.shape == (3, 32, 32)
    assert attribute(net, images, torch.tensor([2, 1, 0]), saliency, shade.name).maps.shape == (3, 32, 32)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    # One that answers a tensor has one head.
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))
    cam = attribute(plain, images, torch.tensor([0, 1, 2]), grad_cam)
    assert cam.layer_map is not None
    assert (cam.layer_map.layer, cam.maps.shape) == ("1", (3, 32, 32))
    with pytest.raises(UserError, match="there is no head 'shade': the network answers one tensor, leave head out"):
        attribute(plain, images, torch.tensor([0, 1, 2]), grad_cam, shade.name)


class _Residual(nn.Module):
    """A convolution, and a block of two beside a 1 x 1 one that strides along."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.two = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.beside = nn.Conv2d(4, 4, 1, stride=2)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        features = self.two(self.one(features).relu()) + self.beside(features)
        return self.out(self.last(features.relu()).mean(dim=(2, 3)))


def test_parallel_ways_are_not_counted_twice() -> None:
    rows, columns = receptive_fields(HeadWrapper(_Residual()), "last", torch.rand(1, 3, 32, 32))
    assert (rows.start, rows.step) == (columns.start, columns.step) == (0.5, 2)


class _Pair(nn.Module):
    """Two heads in a tuple, of four classes and of one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.four, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = self.conv(images).relu().mean(dim=(2, 3))
        return self.four(means), self.one(means)


def test_heads_in_a_tuple_and_a_method_of_ones_own() -> None:
    torch.manual_seed(0)
    net, images = _Pair(), torch.rand(3, 3, 16, 16)
    assert HeadWrapper(net, 0)(images).shape == (3, 4)
    two = HeadWrapper(net, 1)(images)
    torch.testing.assert_close(two[:, 0], -two[:, 1])
    targets = torch.tensor([0, 1, 1])
    for head in (0, 1):
        assert attribute(net, images, targets, grad_cam, head).maps.shape == (3, 16, 16)

    def brightness(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        return images.amax(dim=1) * net(images).gather(1, targets[:, None])[:, :, None]

    found = attribute(net, images, targets, brightness, 1)
    expected = images.amax(dim=1) * two.gather(1, targets[:, None])[:, :, None]
    torch.testing.assert_close(found.maps, expected.detach())
    assert found.method == "brightness"
    with pytest.raises(UserError, match=r"maps of \(3, 3, 16, 16\) are not a tensor \(N, H, W\)"):
        attribute(net, images, targets, lambda net, images, targets: images, 1)
    with pytest.raises(UserError, match=r"there is no head '2' \(there are 0, 1\)"):
        attribute(net, images, targets, brightness, 2)


def test_a_result_draws_and_keeps_itself(tmp_path: Path) -> None:
    found = attribute(_by_hand(), torch.rand(2, 1, 28, 28), torch.tensor([1, 0]), grad_cam, SIDE.name)
    folder = found.save(tmp_path / "kept")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["method"], manifest["layer"]) == ("Attribution", "grad_cam", "stem.conv")
    with np.load(folder / "arrays.npz") as arrays:
        assert np.array_equal(arrays["maps"], found.maps.numpy())
        assert set(arrays) == set(manifest["arrays"]) == {"maps", "images", "targets", "layer_map"}
    for picture in ((folder / "picture.png").read_bytes(), found._repr_png_()):
        assert picture.startswith(b"\x89PNG")
    with pytest.raises(UserError, match="is not empty; nothing is written over"):
        found.save(folder)


def test_a_method_that_gives_no_numbers_is_refused() -> None:
    def broken(net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.amax(dim=1).log()

    with pytest.raises(UserError, match="broken: maps hold values that are not finite"):
        attribute(_by_hand(), torch.zeros(2, 1, 28, 28), torch.tensor([0, 1]), broken, "side")
