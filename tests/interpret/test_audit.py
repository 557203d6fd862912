"""The score command end to end, and its sanity checks on networks where the answer is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnlab.api import Run
from cnnlab.data.datamodule import sample_indices
from cnnlab.interpret.audit import AuditResult, AuditRow, Sample, audit, insertion_deletion, randomise
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.metrics import METRICS, bootstrap_ci, evidence_rank_correlation, head_contrast, rank_correlation
from cnnlab.models.networks import Branched
from cnnlab.utils.checkpoints import load_checkpoint
from tests.conftest import HEADS, TINY_LINES, in_process, run_train
from tests.interpret.test_methods import SIDE, _by_hand
from tests.models.test_networks import MULTI

pytestmark = pytest.mark.slow


def run_audit(*words: str) -> None:
    """`python -m cnnlab.audit <words>` in this process."""
    in_process("audit", *words)


def test_lines_are_graded_head_by_head(lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_audit(f"run={lines_run}", "images=24", "method=[grad_cam,saliency]", f"out={tmp_path}")
    folder = tmp_path / "1"
    assert {path.name for path in folder.iterdir()} == {
        "scores.csv", "scores.png", "scores_all.png", "index.html", "manifest.json",
    }  # fmt: skip
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    every = [row for row in rows if row["metric"] == "rank" and row["predictions"] == "all"]
    assert {row["head"] for row in every} == {"length", "width", "angle", "colour"}
    methods = {"grad_cam", "saliency", "chance", "random map", "edges (Sobel)", "upper bound of the layer"}
    assert {row["method"] for row in every} == methods
    assert {row["truth"] for row in every} == {"line", "counterfactual"}
    for row in every:
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert row["n"] == "24"
    angle = [row for row in rows if (row["head"], row["method"]) == ("angle", "grad_cam")]
    counts = {row["predictions"]: int(row["n"]) for row in angle if (row["metric"], row["truth"]) == ("mass", "line")}
    assert counts["correct"] + counts["wrong"] == 24
    assert len([row for row in rows if row["truth"] == "randomised weights"]) == 8
    assert len([row for row in rows if row["truth"] == "head contrast"]) == 12
    assert "Truth: counterfactual; all predictions" in capsys.readouterr().out
    assert json.loads((folder / "manifest.json").read_text())["images"] == 24


def test_mnist_has_no_truth_and_says_so(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_audit(f"run={digits_run}", "images=20", "method=[grad_cam,occlusion]", f"out={tmp_path}")
    assert "right pixels of this data set are not known" in capsys.readouterr().out
    with (tmp_path / "1" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    methods = ("grad_cam", "occlusion", "random map", "edges (Sobel)")
    curves = [(method, kind) for method in methods for kind in ("insertion", "deletion")]
    assert [(row["method"], row["metric"]) for row in rows] == curves


def test_a_method_is_better_than_the_edge_detector_if_the_intervals_lie_apart() -> None:
    def rank(head: str, method: str, mean: float) -> AuditRow:
        return AuditRow(head, method, "counterfactual", "rank", "all", mean, mean - 0.05, mean + 0.05, 100)

    numbers = {"a": (0.5, 0.8, 0.3), "b": (0.5, 0.59, 0.3)}  # edges, grad_cam, saliency
    scores = [
        rank(head, method, mean)
        for head, means in numbers.items()
        for method, mean in zip(("edges (Sobel)", "grad_cam", "saliency"), means, strict=True)
    ]
    result = AuditResult(scores, list(numbers), ["grad_cam", "saliency"], warnings={"saliency": "why"})
    assert result.verdicts() == [
        ["head", "method", "right pixels", "edge detector", "better?"],
        ["a", "Grad-CAM", "0.80", "0.50", "yes"],
        ["a", "saliency", "0.30", "0.50", "warning"],
        ["b", "Grad-CAM", "0.59", "0.50", "no"],
        ["b", "saliency", "0.30", "0.50", "warning"],
    ]


def test_the_verdict_is_about_whatever_truth_a_data_set_has() -> None:
    pairs = (("grad_cam", 0.95), ("edges (Sobel)", 0.3))
    scores = [AuditRow("shape", name, "object", "rank", "all", x, x - 0.01, x + 0.01, 9) for name, x in pairs]
    assert AuditResult(scores, ["shape", "other"], ["grad_cam"]).verdicts()[1:] == [
        ["shape", "Grad-CAM", "0.95", "0.30", "yes"]
    ]


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
    truths = {head.name: split.truths(indices, head) for head in HEADS}
    sample = Sample(split.inputs(indices), split.targets(indices), truths)
    (own,) = (
        score for score in audit(net, HEADS, {"grad_cam": grad_cam}, sample).scores
        if (score.head, score.method, score.truth, score.metric, score.predictions)
        == ("angle", "grad_cam", "counterfactual", "rank", "all")
    )  # fmt: skip
    assert rows[-1][key] == pytest.approx(own.mean, abs=1e-6)
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


def test_head_contrast() -> None:
    one = torch.zeros(1, 4, 4, dtype=torch.bool)
    two = one.clone()
    one[0, 0, :2], two[0, 0, 1:3] = True, True  # each has one pixel of its own, and they share one
    assert head_contrast(one.float(), two.float(), one, two).tolist() == [1.0]
    assert head_contrast(two.float(), one.float(), one, two).tolist() == [0.0]
    assert head_contrast(one.float(), 7 * one.float(), one, two).tolist() == [0.5]  # the same map up to its size
    assert head_contrast(one.float(), two.float(), one, one).isnan().all()
    three = two.clone()
    three[0, 3, :2] = True  # 0 against 1 and 0, 0: one pair of three won, two ties for a map of `two` alone
    first = torch.zeros(1, 4, 4)
    second = two.float()
    assert head_contrast(first, second, one, three).tolist() == [pytest.approx((1 + 0.5 + 0.5) / 3)]


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
    curves = insertion_deletion(net, SIDE, maps, images, torch.tensor([1]), steps=784)
    full, empty = torch.tensor(1.0).sigmoid().item(), 0.5
    assert curves["insertion"][0, [0, -1]].tolist() == pytest.approx([empty, full])
    assert curves["deletion"][0, [0, -1]].tolist() == pytest.approx([full, empty])
    assert curves["insertion"][0, 1] == pytest.approx(full)  # the first pixel put is the one
    assert curves["deletion"][0, 1] == pytest.approx(empty)


def test_any_truth_has_its_table() -> None:
    rows = [AuditRow("a", "own", "object", metric, "all", 0.5, 0.4, 0.6, 9) for metric in METRICS]
    (title, *_) = AuditResult(rows, ["a"], ["own"]).tables()
    assert title == "Truth: object; all predictions"


def test_pixels_without_evidence_in_both_maps_do_not_make_them_alike() -> None:
    """Three pixels of a line on black, in the opposite order: -1 there, and nearly 1 with the 97 black ones."""
    first, second = torch.zeros(2, 1, 10, 10)
    first[0, 0, :3], second[0, 0, :3] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    assert rank_correlation(first, second).item() > 0.9
    assert evidence_rank_correlation(first, second).item() == pytest.approx(-1)
    assert evidence_rank_correlation(0 * first, 0 * second).isnan().all()


def test_methods_with_warnings_are_not_called_better(lines_run: Path, tmp_path: Path) -> None:
    result = Run(lines_run).audit(["lrp", "saliency"], images=6)
    assert list(result.warnings) == ["lrp"]
    assert {row[-1] for row in result.verdicts() if row[1] == "LRP"} == {"warning"}
    in_process("audit", f"run={lines_run}", "images=6", "method=[lrp]", f"out={tmp_path}")
    assert "LRP, length: do not trust it: on " in (tmp_path / "1" / "index.html").read_text()
