"""Every attribution method in `conf/method/` on networks whose evidence is known, or shares that must add up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cnnlab
from cnnlab.interpret.attribution import attribute, completeness_gap
from cnnlab.interpret.method_names import method_description, method_title
from cnnlab.interpret.methods.rules import deep_lift
from cnnlab.interpret.network import HeadWrapper, frozen_copy
from cnnlab.interpret.registry import named_method
from cnnlab.models.heads import Head
from cnnlab.models.layers import Flatten
from cnnlab.models.networks import MultiHeadNet
from cnnlab.play.live_run import METHODS
from cnnlab.utils.cli import CONF
from cnnlab.utils.errors import UserError
from tests.interpret.hand_built import left_half_evidence, left_half_net
from tests.models.test_networks import LINES, MULTI, build

NAMES = sorted(path.stem for path in (CONF / "method").iterdir())
COLOUR = Head("colour", ("red", "blue"))


def maps(
    net: nn.Module, images: Tensor, name: str, target: int = 1, head: str | None = None, **settings: Any
) -> Tensor:
    method = named_method(name, **settings)[1]
    return attribute(net, images, target, method, head, name=name).maps


def _lines() -> Tensor:
    """A blue column across both halves, and one red pixel in the left half, (1, 3, 28, 28)."""
    image = torch.zeros(1, 3, 28, 28)
    image[0, 2, 12, 8:20] = 0.5
    image[0, 0, 20, 4] = 0.25
    return image


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_title_and_those_of_play_a_sentence(name: str) -> None:
    assert "_" not in method_title(name)
    assert method_description(name).endswith(".") or name not in METHODS


def test_shares_of_a_linear_network_are_its_products() -> None:
    image, net = _lines(), left_half_net(COLOUR)
    truth = torch.zeros(1, 28, 28)
    truth[0, 12, 8:14] = 0.5  # blue, in the left half
    truth[0, 20, 4] = -0.25  # red
    for name in ("input_x_gradient", "integrated_gradients", "expected_gradients", "deep_lift", "deep_lift_shap"):
        torch.testing.assert_close(maps(net, image, name, head="colour"), truth, msg=name)
        torch.testing.assert_close(maps(net, image, name, target=0, head="colour"), -truth, msg=name)
    positive = truth.clamp(min=0)
    torch.testing.assert_close(maps(net, image, "layer_integrated_gradients", head="colour"), truth)
    # A place of the layer is both channels of a pixel: what remains is what speaks for the class.
    for name in ("hires_cam", "layer_cam"):
        torch.testing.assert_close(maps(net, image, name, head="colour"), positive, msg=name)
    torch.testing.assert_close(left_half_evidence(image), truth != 0)
    # Grad-CAM takes the mean of the weights over the places: half of 1 for blue, everywhere.
    everywhere = (image[:, 2] / 2 - image[:, 0] / 2).clamp(min=0)
    torch.testing.assert_close(maps(net, image, "grad_cam", head="colour"), everywhere)


NOT_BY_PIXEL = ("guided_backprop", "deconvolution")  # gradients alone
MIRRORED = {  # for the other class of a linear network they are the same with the other sign
    "deconvolution", "deep_lift", "deep_lift_shap", "expected_gradients", "feature_ablation", "gradient_shap",
    "guided_backprop", "input_x_gradient", "integrated_gradients", "kernel_shap", "layer_integrated_gradients", "lime",
    "lrp", "occlusion", "shapley_sampling",
}  # fmt: skip
WITHOUT_SIGN = {"saliency", "smooth_grad"}
ONE_CLASS = {  # they show what speaks for the class alone
    "grad_cam", "grad_cam_pp", "guided_grad_cam", "hires_cam", "layer_cam", "rise", "score_cam",
}  # fmt: skip
ADDING_UP = {  # by how many pixels the value of a square is repeated
    "deep_lift": 1, "deep_lift_shap": 1, "expected_gradients": 1, "feature_ablation": 16, "input_x_gradient": 1,
    "integrated_gradients": 1, "kernel_shap": 16, "layer_integrated_gradients": 1, "lrp": 1, "shapley_sampling": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_both_classes_of_a_head_of_one_unit(name: str) -> None:
    image, net = _lines(), left_half_net(COLOUR)
    with torch.no_grad():  # red counts twice, so that the gradients of the channels do not cancel
        net.get_submodule("colour.out").get_parameter("weight")[:, ::2] *= 2
    blue, red = (maps(net, image, name, target, "colour")[0] for target in (1, 0))
    assert name in MIRRORED | WITHOUT_SIGN | ONE_CLASS
    if name in MIRRORED:
        torch.testing.assert_close(red, -blue, rtol=1e-3, atol=1e-3)
        assert blue.any()
        assert blue[12, 10] > 0 > blue[20, 4] or name in NOT_BY_PIXEL
    elif name in WITHOUT_SIGN:
        torch.testing.assert_close(red, blue)
    elif name == "guided_grad_cam":  # times the gradient, which is that of red in every channel
        assert blue[12, 10] < 0 < red[20, 4]
        assert not blue[20, 4]
        assert not red[12, 10]
    else:
        assert blue[12, 10] > blue[20, 4]
        assert red[20, 4] > red[12, 10]
    if name in ADDING_UP:
        with torch.no_grad():
            scores = HeadWrapper(frozen_copy(net), "colour")(image)[0]  # of a black image they are 0
        sums = torch.stack([red.sum(), blue.sum()]) / ADDING_UP[name]
        torch.testing.assert_close(sums, scores, rtol=1e-3, atol=1e-3)


def test_squares_of_a_linear_network_are_the_sums_of_their_pixels() -> None:
    image, net = _lines(), left_half_net(COLOUR)
    truth = torch.zeros(28, 28)
    truth[12:16, 8:12] = 4 * 0.5
    truth[12:16, 12:16] = 2 * 0.5  # the other two pixels are in the right half
    truth[20:24, 4:8] = -0.25
    for name in ("feature_ablation", "shapley_sampling"):
        torch.testing.assert_close(maps(net, image, name, head="colour")[0], truth, msg=name)
    regressed = maps(net, image, "kernel_shap", head="colour")[0]
    torch.testing.assert_close(regressed, truth, rtol=1e-3, atol=1e-3)
    line = maps(net, image, "lime", head="colour")[0]  # drawn towards 0 by the ridge
    assert torch.corrcoef(torch.stack([line.flatten(), truth.flatten()]))[0, 1] > 0.99
    assert line[13, 9] == pytest.approx(2.0, rel=0.1)


def test_rise_and_score_cam_find_the_only_pixels_that_count() -> None:
    image, net = torch.zeros(1, 3, 28, 28), left_half_net(COLOUR)
    image[0, 2, 5:9, 5:9] = 1
    found = maps(net, image, "rise", head="colour", n_samples=1000)[0]
    assert found[5:9, 5:9].mean() > found[:, 14:].max()
    assert (maps(net, image, "score_cam", head="colour")[0] > 0).nonzero().amin(dim=0).tolist() == [5, 5]


def test_a_grey_square_shows_what_black_pixels_say() -> None:
    image, net = _lines(), left_half_net(COLOUR)
    assert maps(net, image, "occlusion", head="colour", strides=1)[0, 2, 2] == 0
    with torch.no_grad():  # now the left half's evidence is its red alone: a grey pixel speaks for it
        net.get_submodule("colour.out").get_parameter("weight")[:, 1::2] = 0
    assert maps(net, image, "occlusion", head="colour", strides=1, baselines=0.5)[0, 2, 2] > 0


@pytest.mark.parametrize(
    ("net", "data"),
    [
        ("branched", MULTI),
        ("shared_v2", MULTI),
        ("shared_figure5", MULTI),
        ("deep", LINES),
        ("resnet", MULTI),
        ("blocks", MULTI),
    ],
)
def test_shares_add_up_to_the_difference_of_the_scores(net: str, data: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build(net, data).eval()
    head = data["heads"][-1].name
    images = torch.rand(3, *data["image_shape"])
    wrapper = HeadWrapper(frozen_copy(network), head)
    with torch.no_grad():
        difference = (wrapper(images) - wrapper(torch.zeros_like(images)))[:, 1]
    scale = difference.abs().max().item()
    exact = maps(network, images, "deep_lift", head=head).sum(dim=(1, 2))
    torch.testing.assert_close(exact, difference, rtol=0, atol=1e-3 * scale)
    near = maps(network, images, "integrated_gradients", head=head, n_steps=200).sum(dim=(1, 2))
    torch.testing.assert_close(near, difference, rtol=0, atol=0.05 * scale)


@pytest.mark.parametrize("name", ["deep_lift", "deep_lift_shap", "lrp"])
def test_a_map_that_does_not_add_up_says_so(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = named_method(name)[1]
    linear = attribute(left_half_net(COLOUR), _lines(), 0, method, "colour", name=name)
    assert linear.warnings == ()
    # LayerNorm has no rule.
    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 26, 26]), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    result = attribute(normed, torch.rand(4, 3, 28, 28), "predicted", method, name=name)
    (warning,) = result.warnings
    assert re.match(r"do not trust it: on [1-4] of 4 images the map's sum misses the score difference", warning)
    assert warning in repr(result)
    assert warning in json.loads((result.save(tmp_path / "kept") / "manifest.json").read_text())["warnings"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_a_head_of_one_unit_keep_their_precision(dtype: torch.dtype) -> None:
    """The network's first parameter is of another type than its answer."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    net[1].to(dtype)
    net.register_parameter("scale", nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    net.register_parameter("table", nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False))
    images = torch.rand(2, 1, 2, 2, dtype=dtype)
    with torch.no_grad():
        expected = net(images)[:, 0]
        scores = HeadWrapper(frozen_copy(net))(images)
    assert scores.dtype == dtype
    assert torch.equal(scores, torch.stack([-expected, expected], dim=1))


def test_the_share_that_a_sum_misses() -> None:
    """Scores of red and blue 2 and -2, of black 0; maps that sum to 2, 1 and -2 miss 0, a half and twice of it."""
    image, net = torch.zeros(1, 3, 28, 28), HeadWrapper(left_half_net(COLOUR), "colour")
    image[0, 0, 3, :2] = 1
    found = [
        completeness_gap(net, image, torch.tensor([0]), torch.full((1, 2, 2), value / 4), 0 * image).item()
        for value in (2, 1, -2)
    ]
    assert found == pytest.approx([0, 0.5, 2])


def test_smooth_grad_takes_the_mean_of_gradients_with_their_sign() -> None:
    """Of a square around 0 gradients of both signs cancel; their absolute values would have a mean of 0.24."""

    class Square(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.square().sum(dim=(1, 2, 3))
            return torch.stack([-total, total], dim=1)

    found = maps(Square(), torch.zeros(1, 1, 4, 4), "smooth_grad", nt_samples=400, stdevs=0.15)
    assert found.max() < 0.06  # four standard errors of 2 * 0.15 / sqrt(400)


def test_a_sum_is_checked_within_a_function_of_ones_own() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 26, 26]), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 676, 2))
    image = torch.rand(2, 3, 28, 28)
    for method in (deep_lift, lambda head, images, targets: deep_lift(head, images, targets)):
        (warning,) = attribute(net, image, 1, method).warnings
        assert warning.startswith("do not trust it: on 2 of 2 images the map's sum")


def test_a_difference_that_is_lost_in_rounding_is_no_gap() -> None:
    """A weight of 0.003 and a pixel of 1 / 255, beside a bias of 50: float32 keeps six digits of their sum."""
    net, image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 2)), torch.zeros(1, 3, 28, 28)
    with torch.no_grad():
        net[1].weight.fill_(0.003)
        net[1].bias.fill_(50.0)
    image[0, 0, 3, 3] = 1 / 255
    result = attribute(net, image, 0, named_method("integrated_gradients")[1])
    assert result.warnings == ()
    assert result.maps[0, 3, 3].item() == pytest.approx(0.003 / 255, rel=1e-4)


def test_relevance_is_handed_back_whole_where_there_is_no_bias() -> None:
    torch.manual_seed(0)
    stem = {"conv": nn.Conv2d(3, 4, 3, bias=False), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2), "flatten": Flatten()}
    net = MultiHeadNet((3, 28, 28), (COLOUR,), stem).eval()
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        scores = HeadWrapper(frozen_copy(net), "colour")(images)[:, 1]
    torch.testing.assert_close(maps(net, images, "lrp", head="colour").sum(dim=(1, 2)), scores, rtol=0.01, atol=1e-3)


def test_references_are_what_an_image_is_compared_with() -> None:
    image, net = _lines(), left_half_net(COLOUR)
    found = maps(net, image, "expected_gradients", head="colour", baselines=image)
    torch.testing.assert_close(found, torch.zeros(1, 28, 28))  # it does not differ from itself
    half = maps(net, image, "deep_lift_shap", head="colour", baselines=torch.cat([image, 0 * image]))
    torch.testing.assert_close(half, maps(net, image, "deep_lift", head="colour") / 2)


def test_random_numbers_are_the_methods_own() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    net = left_half_net(COLOUR)
    torch.manual_seed(5)
    for name in ("smooth_grad", "gradient_shap", "shapley_sampling", "lime"):
        maps(net, _lines(), name, head="colour")
    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("feature_ablation", {"patch": 40}, "patch=40 must be at least 1 and fit the image"),
        ("integrated_gradients", {"n_steps": 0}, "n_steps=0 is not a whole number of at least 1"),
        ("smooth_grad", {"nt_samples": 0}, "nt_samples=0 is not a whole number"),
        ("rise", {"n_samples": 2.5}, "n_samples=2.5 is not a whole number"),
        ("smooth_grad", {"stdevs": -1}, "stdevs=-1 is not in 0..inf"),
        ("deep_lift", {"baselines": "black"}, "baselines=black: give a number, or images"),
        (
            "gradient_shap",
            {"baselines": torch.rand(2, 3, 9, 9)},
            r"baselines of \(2, 3, 9, 9\): give a number, or images",
        ),
        ("saliency", {"target": None}, "target=None: give a class"),
    ],
)
def test_a_wrong_setting_is_one_line(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cnnlab.attribute(left_half_net(COLOUR), _lines(), method=method, head="colour", **settings)


def test_whole_numbers_and_single_baselines_are_taken() -> None:
    net, image = left_half_net(COLOUR), _lines()
    for method, settings, same in (
        ("smooth_grad", {"stdevs": 0, "nt_samples": np.int64(3)}, {"stdevs": 0.0, "nt_samples": 3}),
        ("expected_gradients", {"baselines": np.float32(0.5)}, {"baselines": torch.full_like(image[0], 0.5)}),
    ):
        found, expected = (
            cnnlab.attribute(net, image, method=method, head="colour", **given) for given in (settings, same)
        )
        assert torch.equal(found.maps, expected.maps)
        assert found.maps.any()
