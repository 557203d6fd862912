"""The explain command end to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cnnlab
from cnnlab.interpret.network import head_keys
from cnnlab.utils.console import percent
from tests.conftest import in_process

pytestmark = pytest.mark.slow

FEW = ("ascent.steps=2", "layers=[stem.conv]")


def run_explain(*words: str) -> None:
    """`python -m cnnlab.explain <words>` in this process."""
    in_process("explain", *words)


def test_the_newest_run_is_explained_with_everything(
    lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").symlink_to(lines_run.parent)
    monkeypatch.chdir(tmp_path)
    run_explain("ascent.steps=2")
    page = lines_run / "explain" / "1" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1].endswith("explain/1/index.html")
    html = page.read_text()
    assert not re.search(r"""(src)=["']?(?!["']?data:)""", html)
    assert "http://" not in html
    assert html.count("<tr><th>test image") == 6
    assert re.search(r"\d+ of 24 answers to these 6 images are wrong\.", html)
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "manifest.json", "maps.npz", "kernels_stem.conv.png", "filters_angle.png"} <= names
    assert {f"heatmaps_{i}.png" for i in range(1, 7)} <= names
    assert {"activations_angle.conv2.png", "filters_angle.conv2.png", "activations_stem.pool.png"} <= names
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["heads"] == ["length", "width", "angle", "colour"]
    maps = np.load(page.parent / "maps.npz")
    assert {name: list(maps[name].shape) for name in maps.files} == manifest["arrays"]
    assert maps["grad_cam/angle/predicted"].shape == (6, 28, 28)
    assert maps["grad_cam/angle/predicted/angle.relu2"].shape == (6, 9, 9)
    assert (maps["grad_cam/angle/predicted"] >= 0).all()

    run_explain(f"run={lines_run}", *FEW)
    assert (lines_run / "explain" / "2" / "index.html").exists()
    assert page.read_text() == html


def test_all_methods_on_chosen_heads_images_and_targets(lines_run: Path, tmp_path: Path) -> None:
    methods = "grad_cam,saliency,integrated_gradients,guided_grad_cam,occlusion"
    run_explain(
        f"run={lines_run}", f"out={tmp_path}", *FEW, "indices=[3,4]", "heads=[angle,colour]",
        "targets=[predicted,true,45]", f"method=[{methods}]",
    )  # fmt: skip
    maps = np.load(tmp_path / "1" / "maps.npz")
    for method in methods.split(","):
        for key in ("angle/predicted", "angle/true", "angle/45", "colour/true"):
            assert maps[f"{method}/{key}"].shape == (2, 28, 28)
        assert f"{method}/colour/45" not in maps
        assert f"{method}/length/predicted" not in maps
    assert maps["saliency/angle/45/target"].tolist() == [3, 3]


def test_an_image_from_outside(digits_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "my <b>digit.png"
    Image.fromarray(np.full((40, 30), 255, np.uint8)).save(path)
    run_explain(f"run={digits_run}", f"out={tmp_path / 'out'}", *FEW, f"images='{path}'")
    html = (tmp_path / "out" / "1" / "index.html").read_text()
    assert "dark on light, inverted" in html
    assert "is empty, all its pixels are equal" in html
    assert "my &lt;b&gt;digit.png" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads=[angel]"], "there is no head 'angel'; did you mean 'angle'?"),
        (["layers=[stem.cnv]"], "there is no layer 'stem.cnv'; did you mean 'stem.conv'?"),
        (["method=[gradcam]"], "there is no method 'gradcam'; did you mean 'grad_cam'?"),
        (["targets=[46]"], "there is no target '46' (there are predicted, true, short, long"),
        (["indices=[288]"], "288 is not in 0..287"),
        (["indices=[a]"], "are not whole numbers"),
        (["images=no.png"], "there is no image no.png"),
        (["images=no.png", "indices=[1]"], "give images or indices, not both"),
        (["ascent.steps=0"], "ascent: steps=0"),
        (["layer=[stem.conv]"], "there is no setting 'layer'; did you mean 'layers'?"),
        (["ascent=smoth"], "there is no ascent 'smoth'; did you mean 'smooth'?"),
        (["images=[]"], "images=[]: name at least one image file"),
        (["+method.mine._target_=no.such.function"], "method.mine: "),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], message: str, lines_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_explain(f"run={lines_run}", f"out={tmp_path / 'out'}", *words)
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_without_a_run_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cnnlab.explain"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no finished run in outputs/: train one")
    assert os.listdir(tmp_path) == []


def two_heads() -> nn.Module:
    """The network of the test below."""
    return TwoHeads()


def grey_net() -> nn.Module:
    """A network of the test below."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = self.body(images)
        bright = self.second(values)
        return {"shape": self.first(values), "bright": bright, "a/b.c": -bright}


def shares() -> nn.Module:
    """A network that answers the probability of one class, for the test below."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    net[-1].bias.data.fill_(-8.0)  # type: ignore[union-attr, operator]
    return nn.Sequential(net, nn.Sigmoid())


def test_probabilities_are_not_taken_for_scores(tmp_path: Path) -> None:
    for depth, name in ((8, "grey"), (16, "deep")):
        values = np.linspace(0, 2**depth - 1, 900).reshape(30, 30)
        Image.fromarray(values.astype(np.uint8 if depth == 8 else np.uint16)).save(tmp_path / f"{name}.png")
    run_explain(f"net={__name__}.shares", f"images={tmp_path}", "image_size=30", "method=saliency", f"out={tmp_path}/o")
    maps, html = np.load(tmp_path / "o" / "1" / "maps.npz"), (tmp_path / "o" / "1" / "index.html").read_text()
    assert maps["saliency/answer/predicted/target"].tolist() == [0, 0]
    assert html.count("0 99.9") == 2
    assert np.abs(maps["images"][0].astype(int) - maps["images"][1]).max() <= 1  # 16 bits are brought to 8


def two_scores() -> nn.Module:
    """A network with two scores, for the test below."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    net[-1].bias.data = torch.tensor([3.0, -1.0])
    return net


def two_probabilities() -> nn.Module:
    """The same with softmax."""
    return nn.Sequential(two_scores(), nn.Softmax(dim=1))


def two_labels() -> nn.Module:
    """The same for labels that do not exclude each other."""
    return nn.Sequential(two_scores(), nn.Sigmoid())


@pytest.mark.parametrize("net", [two_scores, two_probabilities, two_labels])
def test_two_outputs_are_two_classes(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    values = np.linspace(0, 255, 900).reshape(30, 30)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    words = [f"net={__name__}.{net.__name__}", f"images={tmp_path}", "image_size=30", "method=saliency"]
    run_explain(*words, f"out={tmp_path}/o")
    maps = np.load(tmp_path / "o" / "1" / "maps.npz")
    image = torch.from_numpy(maps["images"]).float().div(255)
    answers = net()(image)[0]
    shares = answers.softmax(dim=0) if net is two_scores else answers
    html = (tmp_path / "o" / "1" / "index.html").read_text()
    assert maps["saliency/answer/predicted/target"].tolist() == [0]
    assert f"0 {percent(shares[0].item())}" in html
    assert f"1 {percent(shares[1].item())}" in html
    expected = cnnlab.attribute(net(), image, method="saliency").maps
    np.testing.assert_allclose(maps["saliency/answer/predicted"], expected, rtol=1e-4, atol=1e-9)


def test_features_beside_the_scores_are_no_head() -> None:
    class Both(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            logits = images.mean(dim=(2, 3))
            return {"features": images, "logits": logits, "loss": images.mean(), "likeness": logits.T @ logits}

    assert head_keys(Both(), torch.rand(2, 3, 8, 8)) == ["logits"]


def test_an_own_network_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    upright = np.zeros((40, 30, 3), np.uint8)
    upright[:10, :10] = 255
    Image.fromarray(upright).save(tmp_path / "photos" / "a.png")
    turned, exif = Image.fromarray(np.rot90(upright)), Image.Exif()
    exif[274] = 6  # the camera was turned: show it turned to the right
    turned.save(tmp_path / "photos" / "b.png", exif=exif)
    net = two_heads()
    parallel = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": parallel}, tmp_path / "weights.pt")
    torch.save({name: torch.full_like(value, torch.nan) for name, value in parallel.items()}, tmp_path / "nan.pt")
    (tmp_path / "text.pt").write_text("hello")
    words = [f"net={__name__}.two_heads", "weights=weights.pt", "images=photos", "image_size=30"]
    run_explain(*words, "targets=[predicted,2]")
    page = tmp_path / "outputs" / "explain" / "1"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "! the images are not normalised; where the network needs it, let net return (net, transform)"
    assert said[-1] == f"page  {Path('outputs/explain/1/index.html')}"
    assert "cropped to 30 x 30, values in [0, 1], not normalised" in (page / "index.html").read_text(encoding="utf-8")
    maps = np.load(page / "maps.npz")
    assert maps["images"].shape == (2, 3, 30, 30)
    np.testing.assert_array_equal(maps["images"][0], maps["images"][1])
    pixels = torch.from_numpy(maps["images"][:1]).float().div(255).requires_grad_()
    scores = net(pixels)
    (gradient,) = torch.autograd.grad(scores["shape"][0, 2], pixels)
    np.testing.assert_allclose(maps["saliency/shape/2"][0], gradient[0].abs().amax(dim=0), rtol=1e-4, atol=1e-8)
    assert maps["saliency/bright/predicted/target"].tolist() == 2 * [int(scores["bright"][0, 0] > 0)]
    assert {path.name for path in page.iterdir()} >= {"architecture.png", "activations_body.0.png", "heatmaps_2.png"}
    for wrong, message in (
        (["images=null"], "images=<folder> is needed with net=<function>"),
        (["net=null"], "weights=<file> goes with net=<function>"),
        (["indices=[1]"], "give images or indices, not both"),
        (["heads=[shap]"], "there is no head 'shap'; did you mean 'shape'?"),
        (["run=somewhere"], "give run or net, not both"),
        (["weights=text.pt"], "weights=text.pt is no state_dict that can be read"),
        (["weights=nan.pt"], "scores are not finite"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_explain(*words, *wrong)
        assert message in str(stop.value)
        assert "\n" not in str(stop.value).strip()
    assert not (tmp_path / "outputs" / "explain" / "2").exists()
    run_explain(f"net={__name__}.grey_net", "images=photos", "image_size=30", "method=saliency")
    maps = np.load(tmp_path / "outputs" / "explain" / "2" / "maps.npz")
    assert maps["images"].shape == (2, 1, 30, 30)  # as its first convolution takes them
