"""Metrics and methods beside those of peers, and 50 networks of timm: `make test-peers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnlab.interpret.attribution import attribute
from cnnlab.interpret.methods.cams import grad_cam, hires_cam, layer_cam
from cnnlab.interpret.methods.rules import lrp
from cnnlab.interpret.metrics import METRICS
from cnnlab.utils.errors import UserError
from tests.interpret.networks import check_place, lively

quantus = pytest.importorskip("quantus", reason="make test-peers installs it")
timm = pytest.importorskip("timm", reason="make test-peers installs it")
torchcam = pytest.importorskip("torchcam.methods", reason="make test-peers installs it")
pytest.importorskip("zennit", reason="make test-peers installs it")

THEIRS = {"mass": "RelevanceMassAccuracy", "rank": "RelevanceRankAccuracy", "pointing": "PointingGame", "auc": "AUC"}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("true", [0.01, 0.07, 0.5])
def test_a_metric_is_that_of_quantus(name: str, true: float) -> None:
    """On maps without equal or negative values, as the two treat those differently by intent."""
    random = np.random.default_rng(0)
    maps = random.permuted(np.arange(1, 12 * 784 + 1, dtype=np.float32).reshape(12, 1, 28, 28), axis=None)
    masks = random.random((12, 1, 28, 28)) < true
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    metric = getattr(quantus, THEIRS[name])(abs=False, normalise=False, disable_warnings=True)
    theirs = metric(model=net, x_batch=maps, y_batch=np.zeros(12, int), a_batch=maps, s_batch=masks, device="cpu")
    ours = METRICS[name](torch.from_numpy(maps[:, 0]), torch.from_numpy(masks[:, 0]))
    assert ours.numpy() == pytest.approx(np.array(theirs, dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.ReLU, lambda: nn.Conv2d(8, 8, 3), nn.ReLU],
        [lambda: nn.BatchNorm2d(8), nn.ReLU, lambda: nn.MaxPool2d(3, 2), lambda: nn.Conv2d(8, 8, 3)],
    ],
)
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_lrp_is_zennits(layers: list[Callable[[], nn.Module]], shift: float) -> None:
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.rules import AlphaBeta, Epsilon, Pass
    from zennit.types import Activation, Convolution

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *(make() for make in layers), nn.Flatten(), nn.LazyLinear(4)).double()
    images, targets = torch.rand(2, 3, 12, 12).double() - shift, torch.tensor([1, 3])
    net(images)
    net.eval()
    rules = [
        (Activation, Pass()),
        (Convolution, AlphaBeta(alpha=1, beta=0, zero_params="bias")),
        ((nn.Linear, nn.BatchNorm2d), Epsilon(1e-9)),
    ]
    with Gradient(net, LayerMapComposite(rules)) as theirs:
        _, relevance = theirs(images.clone(), torch.eye(4).double()[targets] * net(images).detach())
    maps = attribute(net, images, targets, lrp).maps
    torch.testing.assert_close(maps, relevance.sum(dim=1).detach(), rtol=1e-4, atol=1e-6)


def test_cams_are_torch_cams() -> None:
    """At the resolution of the layer: torch-cam stretches maps to the image, we place them where they look."""
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10).eval()
    images = torch.randn(1, 3, 96, 64)
    for theirs, ours in (("GradCAM", grad_cam), ("LayerCAM", layer_cam)):
        with getattr(torchcam, theirs)(net, target_layer="layer4") as extractor:
            (maps,) = extractor(3, net(images), normalized=False)
        found = attribute(net, images, 3, lambda *inputs, ours=ours: ours(*inputs, target_layer="layer4")).layer_map
        assert found is not None
        torch.testing.assert_close(found.values, maps, rtol=1e-3, atol=1e-7)


def test_cams_are_those_of_pytorch_grad_cam() -> None:
    """Stretched to the image as that package does it, from 0 to 1."""
    gradcam = pytest.importorskip("pytorch_grad_cam", reason="make test-peers installs it")
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10).eval()
    images = torch.randn(1, 3, 96, 64)
    for theirs, ours in (("GradCAM", grad_cam), ("HiResCAM", hires_cam), ("LayerCAM", layer_cam)):
        with getattr(gradcam, theirs)(model=net, target_layers=[net.layer4]) as extractor:
            maps = extractor(images, targets=[ClassifierOutputTarget(3)])
        found = attribute(net, images, 3, lambda *inputs, ours=ours: ours(*inputs, target_layer="layer4")).layer_map
        assert found is not None
        assert scale_cam_image(found.values.numpy(), (64, 96)) == pytest.approx(maps, abs=1e-4)


TIMM = (
    *("resnet18", "resnet50", "resnetblur50", "resnext50_32x4d", "wide_resnet50_2", "ecaresnet26t"),
    *("skresnet18", "resnest14d", "res2net50_26w_4s", "vgg11_bn", "vgg16", "densenet121"),
    *("densenetblur121d", "inception_v3", "inception_v4", "inception_resnet_v2", "xception41"),
    *("mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0"),
    *("mnasnet_100", "fbnetc_100", "ghostnet_100", "regnetx_002", "regnety_002", "repvgg_a0"),
    *("hrnet_w18_small", "dla34", "dpn68", "lcnet_050", "tinynet_e", "rexnet_100", "nf_resnet26"),
    *("convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224", "pvt_v2_b0", "twins_svt_small", "mobilevit_xxs", "poolformer_s12"),
    *("cait_xxs24_224", "xcit_nano_12_p8_224", "mixer_s32_224", "levit_128s", "edgenext_xx_small"),
    *("efficientformer_l1", "visformer_tiny"),
)


def test_fifty_networks_of_timm(record_property: Callable[[str, Any], None]) -> None:
    """44 or more give a Grad-CAM map in the right place or one with a warning; the others are refused in one line."""
    results: dict[str, str] = {}
    for name in TIMM:
        torch.manual_seed(0)
        net = lively(timm.create_model(name, pretrained=False)).eval()
        images = torch.randn(2, 3, *(2 * [256 if name == "mobilevit_xxs" else 224]))
        try:
            result = attribute(net, images, 1, grad_cam)
        except UserError as error:
            results[name] = f"refused: {error}"
            continue
        assert result.layer_map is not None
        try:
            check_place(net, images, result.layer_map.layer)
            results[name] = "right, warned" if result.warnings else "right"
        except AssertionError:
            results[name] = "warned" if result.warnings else "wrong"
        print(f"{name:30} {result.layer_map.layer:28} {results[name]}", *result.warnings, flush=True)
    assert len(results) == 50
    assert "wrong" not in results.values(), results
    assert sum(result.startswith("right") for result in results.values()) >= 44, results
