"""The audit end to end, and its checks where the answer is known."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import cnnlab
from cnnlab.api import Run
from cnnlab.data.datamodule import sample_indices
from cnnlab.interpret.attribution import Method, attribute
from cnnlab.interpret.audit import AVOID, CARE, EXCHANGE, USE, AuditResult, audit
from cnnlab.interpret.audit import HEADS as BETWEEN_HEADS
from cnnlab.interpret.controls import TRIVIAL_MAPS, insertion_deletion, randomise
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.metrics import bootstrap_ci, evidence_rank_correlation, rank_accuracy, rank_correlation
from cnnlab.interpret.network import HeadWrapper
from cnnlab.interpret.planted import (
    Planted,
    brightest_fixed_place,
    contrast,
    draw_corners,
    grows_at_marker,
    lowest_half,
    marker_and_lookalike,
    paint,
    plant,
    squares,
)
from cnnlab.models.networks import Branched
from cnnlab.utils.checkpoints import load_checkpoint
from cnnlab.utils.errors import UserError
from research.attribution.broken import BROKEN, SOUND, cam, toy_network
from tests.conftest import HEADS, TINY_LINES, in_process, run_train
from tests.interpret.test_methods import _by_hand
from tests.models.test_networks import MULTI

pytestmark = pytest.mark.slow


def run_audit(*words: str) -> None:
    """`python -m cnnlab.audit <words>` in this process."""
    in_process("audit", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=0"], "0 images are too many or too few"),
        (["images=289"], "289 images are too many or too few: the split has 288"),
        (["method=[gradcam]"], "there is no method 'gradcam'; did you mean 'grad_cam'?"),
        (["image=3"], "there is no setting 'image'; did you mean 'images'?"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, lines_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run_audit(f"run={lines_run}", f"out={tmp_path / 'out'}", *words)
    assert message in str(stop.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("channels", "side", "shortcut"),
    [(1, 28, False), (3, 40, False), pytest.param(3, 32, True, marks=pytest.mark.slow)],
)
def test_broken_methods_are_not_believed_and_sound_ones_are(channels: int, side: int, shortcut: bool) -> None:
    net, images = toy_network(channels, side, shortcut=shortcut)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    result = cnnlab.audit(net, images, methods={**SOUND, **BROKEN})
    verdicts = {name: verdict for name, (verdict, _) in result.verdicts.items()}
    assert {name for name in BROKEN if verdicts[name] != AVOID} == set()
    assert {name for name in SOUND if verdicts[name] == AVOID} == set()
    assert USE in [verdicts[name] for name in SOUND]
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    table = result.to_pandas()
    assert list(table) == ["method", "head", "check", "value", "low", "high", "passed", "verdict"]
    assert set(table.verdict) - {CARE} == {USE, AVOID, ""}  # "" of the controls
    assert (table.low <= table.value + 1e-9).all()
    assert (table.value <= table.high + 1e-9).all()
    assert {row.method for row in result.checks if row.check == "planted marker"} >= set(TRIVIAL_MAPS)


def test_lines_are_audited_head_by_head(lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_audit(f"run={lines_run}", "images=24", "method=[grad_cam,saliency]", f"out={tmp_path}")
    folder = tmp_path / "1"
    files = {"checks.csv", "checks.png", "maps_1.png", "maps_2.png", "index.html", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == files
    with (folder / "checks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["head"] for row in rows} == {"length", "width", "angle", "colour"}
    assert {row["method"] for row in rows} == {"grad_cam", "saliency", *TRIVIAL_MAPS}
    assert {row["check"] for row in rows} >= {"right pixels", "insertion - deletion", BETWEEN_HEADS}
    printed = capsys.readouterr().out
    assert "Grad-CAM" in printed
    assert "verdict" in printed
    assert json.loads((folder / "manifest.json").read_text())["images"].startswith("24 test images of ")


def test_right_pixels_are_scored_by_rank_accuracy(lines_run: Path) -> None:
    run = Run(lines_run)
    result = run.audit("grad_cam", images=20)
    rows = sample_indices(len(run.test_split), 20)
    masks = run.test_split.truths(rows, HEADS[1])["counterfactual"]
    maps = attribute(run.net, run.test_split.inputs(rows), "predicted", grad_cam, "width").maps
    (row,) = (c for c in result.checks if (c.method, c.head, c.check) == ("grad_cam", "width", "right pixels"))
    assert row.value == pytest.approx(rank_accuracy(maps, masks).mean().item())


def test_pairs_are_scored_where_they_differ() -> None:
    """The network answers by the sum of the left half; the right half of a counterfactual differs without effect."""

    def left(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros_like(images[:, 0])
        maps[:, :, 1] = 1
        return maps

    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight.view(2, 20, 20)[:, :, :10] = torch.tensor([-1.0, 1.0])[:, None, None]
        net[1].bias.copy_(torch.tensor([20.0, 0]))
    images, others = torch.zeros(8, 1, 20, 20), torch.zeros(8, 1, 20, 20)
    others[:, :, :, 1], others[:, :, :, 15] = 2.0, 1.0  # 40 > 20 - 40: class 1
    result = audit(net, images, {"left": left}, counterfactuals=others)
    values = {row.method: row.value for row in result.checks if row.check == "pairs"}
    assert values["left"] == 1  # all evidence lies where they differ most
    assert values["image centre"] < 0.1
    assert values[EXCHANGE] > 0.3
    assert any("no marker could be planted" in note for note in result.notes)  # there is no convolution
    assert result.verdicts["left"][0] != USE


def test_mosaics_ask_for_one_of_four_images() -> None:
    net, images = toy_network(1, 28)
    result = cnnlab.audit(net, images, methods={"grad_cam": "grad_cam", "edges": BROKEN["edge detector"]})
    values = {row.method: row for row in result.checks if row.check == "grid pointing game"}
    assert values["grad_cam"].value > values["edges"].value
    assert not values["edges"].passed


def test_a_marker_and_its_lookalike_have_the_same_pixels() -> None:
    images = torch.rand(40, 3, 30, 20)
    corners = draw_corners(40, images, 5, torch.Generator().manual_seed(0))
    assert ((corners >= 0) & (corners <= torch.tensor([25, 15]))).all()
    assert ((corners[:, 0] - corners[:, 1]).abs().amax(dim=1) >= 7).all()
    painted = paint(images, corners, 5, torch.ones(40, dtype=torch.bool))
    planted = Planted(HeadWrapper(nn.Identity()), painted, corners, 5, 1.0, "")
    for image, both in zip(painted, corners.tolist(), strict=True):
        marker, lookalike = (image[:, y : y + 5, x : x + 5] for y, x in both)
        assert torch.equal(marker, lookalike.transpose(1, 2))
        for channel, all_values in zip(marker, images.transpose(0, 1), strict=True):
            assert channel.unique().tolist() == [all_values.min().item(), all_values.max().item()]
    for name in ("image brightness", "image saturation"):
        assert contrast(*marker_and_lookalike(TRIVIAL_MAPS[name](painted), planted)).abs().max() < 1e-6
    alone = paint(images, corners, 5, torch.zeros(40, dtype=torch.bool))
    assert ((alone != painted).any(dim=1) <= squares(planted, 0)).all()  # only the marker differs


def test_a_map_that_is_right_near_a_diagonal_only_scores_low() -> None:
    """As a transposed map: half of the markers lie on the diagonal, where it is right."""
    corners = torch.tensor([[2, 2], [8, 8], [14, 14], [18, 18], [2, 18], [18, 2], [4, 16], [16, 4]])
    corners = torch.stack([corners, corners], dim=1)
    planted = Planted(HeadWrapper(nn.Identity()), torch.zeros(8, 1, 24, 24), corners, 4, 1.0, "")
    right = torch.tensor([1.0, 1, 1, 1, -0.5, -0.5, 0, 0])
    assert sorted(lowest_half(right, planted).tolist()) == [-0.5, -0.5, 0, 0]
    assert lowest_half(torch.ones(8), planted).mean() == 1


def test_contrast_and_placement_by_hand() -> None:
    corners = torch.tensor([[[2, 3], [12, 13]]]).expand(6, -1, -1)
    planted = Planted(HeadWrapper(nn.Identity()), torch.zeros(6, 1, 24, 24), corners, 5, 1.0, "")
    marker, lookalike = squares(planted, 0).float(), squares(planted, 1).float()
    both = marker_and_lookalike(3 * marker + lookalike, planted)
    assert [values.tolist() for values in both] == [[75.0] * 6, [25.0] * 6]
    assert contrast(*both).tolist() == [0.5] * 6
    assert contrast(*marker_and_lookalike(-marker, planted)).tolist() == [-1.0] * 6
    assert contrast(*marker_and_lookalike(0 * marker, planted)).tolist() == [0.0] * 6
    assert grows_at_marker(marker + lookalike / 4, planted).tolist() == [1.0] * 6
    assert grows_at_marker(marker + lookalike / 2, planted).tolist() == [0.0] * 6  # more than a third, elsewhere
    beside = marker + marker.roll(4, 2) / 2  # as of a coarse map: less than half a square apart
    assert grows_at_marker(beside, planted).tolist() == [1.0] * 6
    assert grows_at_marker(marker.roll((0, 2), (1, 2)), planted).tolist() == [1.0] * 6  # of 5 pixels
    assert grows_at_marker(marker.roll((0, 3), (1, 2)), planted).tolist() == [0.0] * 6
    assert grows_at_marker(marker - 2 * marker, planted).tolist() == [0.0] * 6


def test_a_fixed_place_is_seen_by_hand() -> None:
    """Markers in the four corners and in the middle; the lookalike lies below the middle."""
    corners = torch.tensor([[[0, 0]], [[0, 19]], [[19, 0]], [[19, 19]], [[9, 9]]]).repeat(1, 2, 1)
    corners[:, 1] = torch.tensor([15, 9])
    planted = Planted(HeadWrapper(nn.Identity()), torch.zeros(5, 1, 24, 24), corners, 5, 1.0, "")
    marker, fixed = squares(planted, 0).float(), torch.zeros(5, 24, 24)
    assert brightest_fixed_place(marker, planted).nan_to_num(0).tolist() == [0.0] * 5
    fixed[:, :5, 9:14] = 1  # above the middle, apart from every marker
    assert brightest_fixed_place(marker + 0.4 * fixed, planted).tolist() == pytest.approx([0.4] * 5)
    assert brightest_fixed_place(0.1 * marker + fixed, planted).tolist() == [1.0] * 5
    assert brightest_fixed_place(fixed - marker, planted).tolist() == [1.0] * 5
    fixed = torch.zeros(5, 24, 24)
    fixed[:, :5, :5] = 1  # where the first marker lies
    shares = brightest_fixed_place(marker + 0.5 * fixed, planted)
    assert shares[1:].tolist() == pytest.approx([0.5] * 4)
    assert shares[0].isnan()


def test_a_network_learns_the_marker_and_the_original_is_kept() -> None:
    net, images = toy_network(3, 28)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    planted = plant(HeadWrapper(net), images, 30)
    assert planted.accuracy >= 0.98
    assert planted.summary.endswith("of new images follow it; layers from 0 on learned it")
    with torch.no_grad():
        assert (planted.net(planted.images).argmax(dim=1) == 1).all()
    assert not torch.equal(planted.net.net[3].weight, net[3].weight)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="too small for a marker"):
        plant(HeadWrapper(net), torch.rand(9, 3, 12, 12), 9)
    assert plant(HeadWrapper(nn.Sequential(net, nn.Softmax(dim=1))), images, 30).accuracy >= 0.98


def test_evidence_for_the_other_class_fails_the_sign() -> None:
    """Where a bright square decides, the rest of the image is no evidence: the negative of input x gradient fails."""
    net, images = toy_network(1, 20)
    result = cnnlab.audit(net, images, methods={"right": "input_x_gradient", "wrong": BROKEN["sign flipped"]})
    passed = {row.method: row.passed for row in result.checks if row.check == "sign"}
    assert passed == {"right": True, "wrong": False}


def test_an_interrupted_audit_keeps_what_is_ready() -> None:
    net, images = toy_network(1, 20)

    def stop(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    result = cnnlab.audit(net, images, methods={"edges": BROKEN["edge detector"], "stop": stop, "never": stop})
    assert list(result.verdicts) == ["edges"]
    assert "interrupted: 1 of 3 methods are audited" in result.notes
    with pytest.raises(KeyboardInterrupt):
        cnnlab.audit(net, images, methods={"stop": stop})


def test_a_method_that_fails_does_not_end_the_audit() -> None:
    def fail(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        raise IndexError("tuple index\nout of range")

    def inside(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        return images.amax(dim=1) > 0.5

    def overwrite(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        return images.zero_().sum(dim=1)

    def small(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        """Works on images of 20 pixels only."""
        return cam(net, images, targets) * torch.ones(20, 20)

    net, images = toy_network(1, 20)
    kept = images.clone()
    result = cnnlab.audit(net, images, methods={"fail": fail, "inside": inside, "overwrite": overwrite, "small": small})
    assert "fail ends with IndexError: tuple index out of range" in result.verdicts["fail"][1]
    assert result.verdicts["inside"][0] == AVOID
    assert result.verdicts["overwrite"][0] == AVOID
    assert result.verdicts["small"][0] != AVOID  # a mosaic is larger: that check is left out
    assert torch.equal(images, kept)


def test_a_vision_transformer_of_one_size_is_audited() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3).eval()
    with torch.no_grad():
        net.heads.head.weight.normal_()  # torchvision starts with zeros
    result = cnnlab.audit(net, torch.rand(12, 3, 32, 32), methods=["saliency"])
    assert list(result.verdicts) == ["saliency"]
    assert "grid pointing game" not in {row.check for row in result.checks}


def test_weight_norm_gets_random_weights_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older of two weight norms
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(4, 2))
    images = torch.rand(2, 1, 3, 3)
    with torch.no_grad():
        net(images)
        weight = net[0].weight.clone()
        other = randomise(net)
        other(images)
        assert not torch.allclose(other[0].weight, weight)


def test_a_refusing_method_is_not_for_use() -> None:
    def refuse(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        raise UserError("not for you")

    net, images = toy_network(1, 20)
    result = cnnlab.audit(net, images, methods={"refuse": refuse})
    assert result.verdicts["refuse"] == (AVOID, "it gives no map: not for you")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": torch.rand(7, 1, 20, 20)}, "at least 8 images"),
        ({"images": torch.rand(1, 20, 20)}, "at least 8 images"),
        ({"images": [1]}, "takes an nn.Module and a float tensor"),
        ({"masks": torch.zeros(3, 20, 20)}, r"masks of \(3, 20, 20\) do not fit: give a tensor of \(48, 20, 20\)"),
        ({"counterfactuals": torch.zeros(48, 1, 9, 9)}, "counterfactuals of .* do not fit"),
        ({"masks": {"siez": torch.zeros(48, 20, 20)}}, "the heads are"),
        ({"head": []}, "name at least one head"),
        ({"methods": []}, "name at least one method"),
        ({"head": "shape"}, "there is no head 'shape'"),
        ({"methods": ["grad_cm"]}, "did you mean 'grad_cam'"),
        ({"images": torch.full((9, 1, 20, 20), torch.nan)}, "not finite"),
    ],
)
def test_what_a_user_can_get_wrong_in_python(settings: dict[str, object], message: str) -> None:
    net, images = toy_network(1, 20)
    two_heads = _TwoHeads(net)
    with pytest.raises(UserError, match=message):
        cnnlab.audit(two_heads, **{"images": images, "methods": ["saliency"], **settings})  # type: ignore[arg-type]


class _TwoHeads(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"size": self.net(images), "other": -self.net(images)}


def test_heads_are_named_as_the_network_names_them() -> None:
    net, images = toy_network(1, 20)
    result = cnnlab.audit(_TwoHeads(net), images, methods="grad_cam")
    assert isinstance(result, AuditResult)
    assert result.heads == ["size", "other"]
    assert cnnlab.audit(_TwoHeads(net), images, head="other", methods="grad_cam").heads == ["other"]


def tiny() -> nn.Module:
    """The network of the test below."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def test_an_own_network_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for number in range(9):
        pixels = torch.randint(0, 256, (30, 40 + number, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    torch.save(tiny().state_dict(), tmp_path / "weights.pt")
    words = [f"net={__name__}.tiny", f"images={tmp_path / 'images'}", "image_size=32", "method=[grad_cam]"]
    methods = ["saliency", "layer_cam", "hires_cam", "grad_cam_pp", "lrp", "deep_lift", "input_x_gradient"]
    methods += ["guided_backprop", "deconvolution", "guided_grad_cam", "smooth_grad", "grad_cam"]
    given = [f"weights={tmp_path / 'weights.pt'}", f"out={tmp_path / 'out'}", f"method=[{','.join(methods)}]"]
    run_audit(*words, *given)
    assert "Grad-CAM" in capsys.readouterr().out
    html = (tmp_path / "out" / "1" / "index.html").read_text()
    table, rest = html[html.index("<table") :].split("<details>", 1)
    shown = re.findall(f'class="word (?:use|care|avoid)">({USE}|{CARE}|{AVOID})<', table)
    assert len(shown) == 10
    assert shown == sorted(shown, key=[USE, CARE, AVOID].index)
    assert "2 more" in rest
    for wrong, message in (
        (["weights=none.pt"], "there is no file none.pt"),
        ([f"images={tmp_path}"], "there is no image in"),
        (["net=no.such.function"], "net=no.such.function"),
        (["net=torchvision.models.resnet19"], "there is no resnet19 in torchvision.models; did you mean 'resnet18'?"),
        (["net=nothing"], "net=nothing"),
        (["net=null"], "is no number; a folder of images goes with net"),
        (["images=50"], "images=<folder> is needed with net=<function>"),
        (["run=somewhere"], "give run or net, not both"),
        (["net=null", "images=9", "weights=w.pt"], "weights=<file> goes with net=<function>"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_audit(*words, *wrong)
        assert message in str(stop.value)
        assert "\n" not in str(stop.value).strip()


def test_looking_at_heatmaps_after_each_epoch(tmp_path: Path, digits: tuple[str, ...]) -> None:
    monitor = ("callbacks=[default,grad_cam_monitor]", "callbacks.grad_cam_monitor.images=24")
    folder = run_train(tmp_path / "run", "experiment=multihead", *TINY_LINES, *monitor)
    rows = Run(folder).metrics
    key = "val/angle/grad_cam_rank_accuracy"
    assert [0 <= row[key] <= 1 for row in rows] == [True, True]
    assert (folder / "figures" / "grad_cam.png").exists()
    assert "Rank accuracy of Grad-CAM by epoch" in (folder / "report.html").read_text()
    plain = run_train(tmp_path / "plain", "experiment=multihead", *TINY_LINES)
    assert [row["val/loss"] for row in Run(plain).metrics] == [row["val/loss"] for row in rows]  # it changes nothing
    run = Run(folder)
    datamodule = run.datamodule()
    net = run.net
    state = load_checkpoint(run.checkpoint("last"))["state_dict"]  # the network of the last row
    net.load_state_dict({key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")})
    split, indices = datamodule.splits["val"], sample_indices(192, 24)
    maps = attribute(net, split.inputs(indices), "predicted", grad_cam, "angle").maps
    own = rank_accuracy(maps, split.truths(indices, HEADS[2])["counterfactual"]).mean().item()
    assert rows[-1][key] == pytest.approx(own, abs=1e-6)
    with pytest.raises(SystemExit, match="no true pixels"):
        run_train(tmp_path / "mnist", "experiment=mnist", *digits, *monitor)


def test_randomised_weights_are_new_and_the_network_is_left_alone() -> None:
    net = Branched(**MULTI)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    other = randomise(net)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    weight = "angle.conv1.weight"
    assert not torch.allclose(other.state_dict()[weight], before[weight])


def test_every_kind_of_layer_gets_new_weights() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.arange(4.0).view(4, 1, 1))

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return maps * self.factor

    net = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3), nn.GroupNorm(2, 4), Scale(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
        nn.LazyLinear(4), nn.LayerNorm(4), nn.Linear(4, 2),
    )  # fmt: skip
    net(torch.rand(1, 3, 8, 8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.37)
    after, before = dict(randomise(net).named_parameters()), dict(net.named_parameters())
    assert all((after[name] != before[name]).all() for name in before)


def test_rank_correlation() -> None:
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert rank_correlation(first, first.exp()).tolist() == [1.0]
    assert rank_correlation(first, -first).tolist() == [-1.0]
    # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: covariance 4 / sqrt(5 * 4)
    tied = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    assert rank_correlation(first, tied).tolist() == [pytest.approx(4 / 20**0.5)]
    assert rank_correlation(first, torch.ones(1, 2, 2)).isnan().all()


def test_the_interval_holds_the_mean_and_skips_what_is_undefined() -> None:
    scores = torch.tensor([0.0, 1.0] * 50 + [torch.nan] * 7, dtype=torch.float64)
    mean, low, high, n = bootstrap_ci(scores)
    assert (mean, n) == (0.5, 100)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)  # standard error sqrt(0.25 / 100)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    assert bootstrap_ci(torch.tensor([torch.nan]))[3] == 0


def test_insertion_and_deletion_begin_and_end_where_they_must() -> None:
    net = _by_hand()
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 10, 10] = 1  # z = 2 - 1 = 1
    maps = images[:, 0]
    curves = insertion_deletion(HeadWrapper(net, "side"), maps, images, torch.tensor([1]), steps=784)
    full, empty = torch.tensor(1.0).sigmoid().item(), 0.5
    assert curves["insertion"][0, [0, -1]].tolist() == pytest.approx([empty, full])
    assert curves["deletion"][0, [0, -1]].tolist() == pytest.approx([full, empty])
    assert curves["insertion"][0, 1] == pytest.approx(full)  # the first pixel put is the one
    assert curves["deletion"][0, 1] == pytest.approx(empty)


def test_pixels_without_evidence_in_both_maps_do_not_make_them_alike() -> None:
    """Three pixels of a line on black, in the opposite order: -1 there, and nearly 1 with the 97 black ones."""
    first, second = torch.zeros(2, 1, 10, 10)
    first[0, 0, :3], second[0, 0, :3] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    assert rank_correlation(first, second).item() > 0.9
    assert evidence_rank_correlation(first, second).item() == pytest.approx(-1)
    assert evidence_rank_correlation(0 * first, 0 * second).isnan().all()


def test_a_method_that_changes_its_network_harms_no_other() -> None:
    """In training mode, with a hook, with other weights, or by its targets."""

    def vandal(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        maps = cam(net, images, targets)
        net.train()
        for module in net.modules():
            if isinstance(module, HeadWrapper | nn.Conv2d):
                module.register_forward_hook(lambda _module, _inputs, output: 0.3 * output)
        for parameter in net.parameters():
            parameter.data.mul_(0.1)
        images.zero_()
        targets.fill_(0)
        return maps

    net, images = toy_network(3, 32, seed=1)
    sound: dict[str, Method] = {"grad_cam": SOUND["grad_cam"]}
    alone = cnnlab.audit(net, images, methods=sound)
    after = cnnlab.audit(net, images, methods={"vandal": vandal, **sound})
    assert after.verdicts["vandal"][0] == AVOID
    assert after.verdicts["grad_cam"] == alone.verdicts["grad_cam"]
    values = [[row.value for row in result.checks if row.method == "grad_cam"] for result in (alone, after)]
    assert values[0] == values[1]
    changed = cnnlab.attribute(net, images[:2], 1, vandal)
    assert torch.equal(changed.images, images[:2])


def test_masks_and_counterfactuals_must_say_something() -> None:
    net, images = toy_network(3, 32, seed=1)
    half = torch.zeros(48, 32, 32, dtype=torch.bool)
    half[:, :16] = True
    for masks, message in (
        (torch.ones(48, 32, 32), "no image has right pixels and others"),
        (torch.zeros(48, 32, 32), "no image has right pixels and others"),
        (torch.full((48, 32, 32), torch.nan), "masks hold values that are not finite"),
        (torch.full((48, 32, 32), 0.3), "masks hold values between: give True for the right pixels"),
    ):
        with pytest.raises(UserError, match=message):
            cnnlab.audit(net, images, methods=["saliency"], masks=masks)
    half[3] = False
    result = cnnlab.audit(net, images, methods=["saliency"], masks=half, counterfactuals=images)
    assert result.notes[:2] == (
        "the answer: the masks of 1 of 48 images are empty or full",
        "the answer: no counterfactual changes the answer, so pairs are not checked",
    )


def test_a_scripted_network_is_audited() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        net, images = toy_network(3, 32, seed=1)
        result = cnnlab.audit(torch.jit.script(net), images, methods=["occlusion", "grad_cam"])
    assert result.verdicts["occlusion"] == (CARE, "no marker could be planted to test it")
    assert result.verdicts["grad_cam"][0] == AVOID
    assert "nothing is known of the layers of a scripted network" in result.notes[0]
