"""python -m research.attribution: small ones from end to end, and its statistics against numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnlab.data.ground_truth import LineTruths
from cnnlab.interpret.controls import BRIGHTNESS, EDGES, RANDOM
from cnnlab.interpret.methods.cams import grad_cam, hires_cam
from cnnlab.interpret.methods.gradients import input_x_gradient
from cnnlab.interpret.metrics import METRICS, auc, auc_within
from cnnlab.interpret.network import HeadWrapper
from cnnlab.utils.errors import UserError
from research.attribution import page
from research.attribution.findings import answers
from research.attribution.grades import CASCADE, TRUTHS, UPPER_BOUND, Grades, grade
from research.attribution.hand_built import left_half_evidence, left_half_net
from research.attribution.table import Cell, Table
from tests.conftest import in_process

NAME = "research.attribution"
SMALL = (
    *("breadth=quick", "images=6", "method=[grad_cam,input_x_gradient]"),
    "networks.branched=['data.train_per_class=6','data.val_per_class=2','data.test_per_class=3','trainer.max_epochs=1']",
)


def my_method(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """A method of one's own: how bright a pixel is."""
    return images.amax(dim=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    in_process(NAME, *SMALL, f"out={folder}")
    return folder


def test_the_command_trains_grades_and_writes_a_page(small: Path) -> None:
    rows = list(csv.DictReader((small / "scores.csv").read_text().splitlines()))
    assert {row["network"] for row in rows} == {"branched", "by_hand"}
    assert {row["head"] for row in rows if row["network"] == "by_hand"} == {"colour"}
    assert {row["protocol"] for row in rows} == {LineTruths(6).fingerprint}
    assert {row["method"] for row in rows} >= {"grad_cam", "input_x_gradient", EDGES}
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)
    page = (small / "index.html").read_text()
    assert "Which explanation can one trust?" in page
    assert "A network whose weights were set by hand" in page
    manifest = json.loads((small / "manifest.json").read_text())
    assert [one["network"] for one in manifest["networks"]] == ["branched", "by_hand"]
    assert (small / "networks" / "plain_branched_0" / "summary.json").is_file()
    assert {path.name for path in small.glob("maps_*.png")} == {
        f"maps_{head}.png" for head in ("length", "width", "angle", "colour")
    }


def test_what_is_there_is_not_made_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [*(small / "grades").iterdir(), small / "networks" / "plain_branched_0" / "summary.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    in_process(NAME, *SMALL, f"out={small}")
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert "epoch 1" not in capsys.readouterr().out


def test_grades_of_another_recipe_or_setting_are_not_taken_for_these(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "out")
    file = tmp_path / "out" / "grades" / "by_hand_by_hand_0.npz"
    runs = f"runs=[{small}/networks/plain_branched_0]"
    in_process(NAME, *SMALL, runs, f"out={tmp_path}/out")
    same = file.stat().st_mtime_ns
    in_process(NAME, *SMALL, runs, f"out={tmp_path}/out")
    assert file.stat().st_mtime_ns == same
    in_process(NAME, *SMALL, runs, f"out={tmp_path}/out", "method.grad_cam.target_layer=stem.conv")
    assert file.stat().st_mtime_ns > same
    with pytest.raises(SystemExit, match="holds another run than this; choose another folder"):
        in_process(NAME, *SMALL, f"out={tmp_path}/out", "networks.branched=['data.train_per_class=7']")
    with pytest.raises(SystemExit, match="two networks are called plain_plain_branched_0_0"):
        in_process(
            "research.attribution",
            *SMALL,
            f"runs=[{small}/networks/plain_branched_0,{tmp_path}/out/networks/plain_branched_0]",
        )


def test_a_method_of_ones_own_and_maps_made_elsewhere(small: Path, tmp_path: Path) -> None:
    data = LineTruths(6)
    for head in data.heads:
        np.save(tmp_path / f"plain_plain_branched_0_0_{head.name}.npy", data.counterfactuals[head.name].numpy())
    in_process(
        NAME, "breadth=quick", "images=6", "method=[grad_cam]", "by_hand=false", f"out={tmp_path}/out",
        f"runs=[{small}/networks/plain_branched_0]", f"+method.mine._target_={__name__}.my_method",
        f"maps.perfect='{tmp_path}/{{scene}}_{{network}}_{{seed}}_{{head}}.npy'",
    )  # fmt: skip
    found = Grades.load(tmp_path / "out" / "grades" / "plain_plain_branched_0_0.npz")
    perfect = found.values[:, found.methods.index("perfect"), TRUTHS.index("counterfactual")]
    assert np.allclose(perfect, 1)
    colour = found.values[3, found.methods.index("mine"), TRUTHS.index("line"), list(METRICS).index("mass")]
    assert np.allclose(colour, 1)  # of brightness all lies on the line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("images=0",), "images=0 is not in 1..1000"),
        (("scenes.fog=[branched]",), "there is no scene 'fog'"),
        (("scenes.plain=[brunched]",), "scenes.plain: there is no network 'brunched'; did you mean 'branched'?"),
        (("runs=[nowhere]",), "nowhere is not a run folder"),
        (("maps.grad_cam=x.npy",), "maps.grad_cam has the name of a method"),
        (("device=tpu0",), "device"),
        (("breadth=qick",), "there is no breadth 'qick'; did you mean 'quick'?"),
        (("seeds=[no]",), "seeds=['no'] are not whole numbers"),
        (("networks.branched=['net=brunched']",), "there is no net 'brunched'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as user_errors:
        in_process(NAME, *SMALL, f"out={tmp_path}/out", *words)
    assert message in str(user_errors.value)
    assert "\n" not in str(user_errors.value)
    assert not (tmp_path / "out").exists()


def test_maps_that_are_not_there_or_of_another_shape_are_one_line(small: Path, tmp_path: Path) -> None:
    words = ("breadth=quick", "images=6", "method=[grad_cam]", f"runs=[{small}/networks/plain_branched_0]")
    with pytest.raises(SystemExit, match=r"maps\.mine: .*mine\.npy cannot be read"):
        in_process(NAME, *words, f"out={tmp_path}/out", f"maps.mine={tmp_path}/mine.npy")
    np.save(tmp_path / "mine.npy", np.zeros((5, 28, 28)))
    with pytest.raises(SystemExit, match=r"holds no finite maps \(6, 28, 28\), but \(5, 28, 28\)"):
        in_process(NAME, *words, f"out={tmp_path}/out", f"maps.mine={tmp_path}/mine.npy")


def test_grades_that_were_cut_short_are_named(small: Path, tmp_path: Path) -> None:
    file = small / "grades" / "by_hand_by_hand_0.npz"
    broken = tmp_path / "broken.npz"
    broken.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is broken"):
        Grades.load(broken)


def _by_hand(images: int = 12) -> Grades:
    data = LineTruths(images)
    colour = data.heads[-1]
    methods: dict[str, Any] = {"grad_cam": grad_cam, "hires_cam": hires_cam, "input_x_gradient": input_x_gradient}
    exact = {"colour": left_half_evidence(data.images)}
    facts = {"scene": "plain", "network": "net", "seed": 0, "drawn": "plain", "device": "cpu"}
    return grade(left_half_net(colour), methods, data, facts, [colour], exact)


def test_the_grades_of_a_network_whose_evidence_is_known() -> None:
    found, data = _by_hand(), LineTruths(12)
    assert found.methods == [RANDOM, EDGES, BRIGHTNESS, "grad_cam", "hires_cam", "input_x_gradient", UPPER_BOUND]
    left = left_half_evidence(data.images).flatten(1).any(dim=1).numpy()
    # A line that is in the right half alone leaves the logit 0, which is read as red, whatever its colour.
    assert (found.flips[0] == left).all()
    own = TRUTHS.index("own")
    rank = list(METRICS).index("rank")
    some = found.flips[0]
    assert np.allclose(found.values[0, found.methods.index("hires_cam"), own, rank][some], 1)
    assert np.allclose(found.values[0, found.methods.index("input_x_gradient"), own, rank][some], 1)
    line = found.values[0, found.methods.index(BRIGHTNESS), TRUTHS.index("line"), rank]
    assert np.allclose(line, 1)  # on black what is bright is the line
    whole = left_half_evidence(data.images).flatten(1).sum(dim=1) == data.lines.flatten(1).sum(dim=1)
    both = some & ~whole.numpy()
    if both.any():  # Grad-CAM lights the whole line
        assert (found.values[0, found.methods.index("grad_cam"), own, rank][both] < 1).all()
    assert found.cascade.shape == (1, 7, len(CASCADE))
    assert found.passes[0, found.methods.index("grad_cam")] == pytest.approx(1, abs=0.2)
    assert np.allclose(np.diag(found.agreement[0])[:-1], 1)


def test_saving_keeps_everything(tmp_path: Path) -> None:
    found = _by_hand(6)
    found.save(tmp_path / "grades.npz")
    again = Grades.load(tmp_path / "grades.npz")
    assert again.facts == found.facts
    np.testing.assert_array_equal(again.values, found.values)
    assert os.listdir(tmp_path) == ["grades.npz"]


def test_auc_within_a_domain_counts_its_pairs() -> None:
    maps = torch.tensor([[[5.0, 1.0, 4.0, 2.0, 9.0]]])
    masks = torch.tensor([[[True, False, True, False, False]]])
    domain = torch.tensor([[[True, True, True, True, False]]])
    assert auc_within(maps, masks, domain).item() == 1  # 9 does not count
    lower = torch.tensor([[[1.5, 1.0, 4.0, 2.0, 9.0]]])
    assert auc_within(lower, masks, domain).item() == pytest.approx(3 / 4)
    assert auc_within(maps, masks, torch.ones_like(masks)).item() == pytest.approx(auc(maps, masks).item())
    assert auc_within(maps, domain, domain).isnan().all()


def _table(values: np.ndarray[Any, Any], flips: np.ndarray[Any, Any] | None = None) -> Table:
    """Grades by hand, (seeds, methods, images) of the methods edges, a and b, for one head of one network; brightness
    has those of the edges."""
    base = _by_hand(6)
    values = np.insert(values, 1, values[:, 0], axis=1)
    seeds, methods, images = values.shape
    names = [EDGES, BRIGHTNESS, "a", "b"][:methods]
    every = []
    for seed in range(seeds):
        full = np.zeros((1, methods, len(TRUTHS), len(METRICS), images), dtype=np.float32)
        full[0, :, TRUTHS.index("counterfactual"), list(METRICS).index("rank")] = values[seed]
        facts = {**base.facts, "seed": seed, "methods": names, "heads": ["colour"]}
        kept = np.ones((1, images), dtype=bool) if flips is None else flips
        inside = np.full((1, methods, images), np.nan, dtype=np.float32)
        every.append(replace(base, facts=facts, values=full, flips=kept, within=inside))
    return Table(every)


def test_a_method_beats_the_edges_only_where_seeds_and_images_allow() -> None:
    edges = np.full((3, 1, 4), 0.5)
    sure = np.array([0.7, 0.72, 0.71])[:, None, None] + np.array([0.0, 0.01, -0.01, 0.0])[None, None]
    one_image = np.tile(np.array([0.5, 0.5, 0.5, 1.0]), (3, 1, 1))  # ahead by one image alone
    table = _table(np.concatenate([edges, sure, one_image], axis=1))
    a, b = (table.results[Cell("plain", "net", "colour", name)] for name in "ab")
    assert a.beats
    assert not a.loses
    assert a.mean.mean == pytest.approx(0.71)
    half = 4.303 * 0.01 / np.sqrt(3)  # Student's factor for three, of a deviation of 0.01
    assert a.ahead.low == pytest.approx(0.21 - half, abs=1e-6)
    assert b.ahead.low > 0  # all seeds agree
    assert not b.beats  # but not the images
    assert table.beaten("plain", "a") == (1, 0, 1)
    assert answers(table)[0].startswith(
        "For colour (plain lines) a beats an edge map on the one network (0.71 against 0.50"
    )


def test_scenes_stand_beside_each_other() -> None:
    """In one scene a is ahead of the edges, in the other it is behind them and b is the better."""
    edges = np.full((3, 1, 4), 0.5)
    high, low = np.full((3, 1, 4), 0.9), np.full((3, 1, 4), 0.2)
    here = _table(np.concatenate([edges, high, low], axis=1))
    there = _table(np.concatenate([edges, low, np.full((3, 1, 4), 0.4)], axis=1))
    other = [replace(one, facts={**one.facts, "scene": "noise"}) for one in there.grades]
    assert page.by_scene(Table([*here.grades, *other])) == [
        ["mean rank (beats edges)", "plain lines", "scene noise"],
        ["a", "1.0 (1 of 1)", "2.0 (0 of 1)"],
        ["b", "2.0 (0 of 1)", "1.0 (0 of 1)"],
    ]


def test_what_a_network_needs_is_told_beside_brightness_network_by_network() -> None:
    grades = []
    for network, ahead in (("one", 0.2), ("two", 0.3)):
        within = np.full((1, 4, 4), 0.5, dtype=np.float32)  # edges, brightness, a, b
        within[0, 1:3] = [[0.6] * 4, [0.6 + ahead] * 4]
        table = _table(np.full((2, 3, 4), 0.5))
        grades += [replace(one, within=within, facts={**one.facts, "network": network}) for one in table.grades]
    found = {row[0]: row[3:] for row in page.own_truth(Table(grades), "plain")}
    half = 12.706 * 0.05 * np.sqrt(2) / np.sqrt(2)  # Student's factor for two; 0.2 and 0.3 lie 0.05 from their mean
    assert found["a"] == ["0.85", f"+0.25 [{0.25 - half:+.2f}, {0.25 + half:+.2f}]"]
    assert found["image brightness"] == ["0.60", ""]
    assert {row["mean"] for row in Table(grades).rows() if (row["method"], row["metric"]) == ("a", "auc within")} == {
        0.8, 0.9,
    }  # fmt: skip


def test_images_whose_answer_does_not_change_do_not_count() -> None:
    values = np.array([[[0.5, 0.5, 0.5], [0.9, 0.9, 0.0]]])
    table = _table(values, np.array([[True, True, False]]))
    assert table.results[Cell("plain", "net", "colour", "a")].mean.mean == pytest.approx(0.9)
    assert {row["images"] for row in table.rows() if row["method"] == "a"} == {2}


def test_wrong_answers_are_graded_apart_where_there_are_enough() -> None:
    values = np.tile(np.array([0.5, 0.5, 0.2, 0.4]), (3, 2, 5))  # (3, 2, 20); of each four images the last two wrong
    table = _table(values, np.zeros((1, 20), dtype=bool))  # a wrong answer need not change with the counterfactual
    right = np.tile(np.array([[True, True, False, False]]), (1, 5))
    told = page.wrong_answers(Table([replace(one, right=right) for one in table.grades]))
    # Ten images, the same for each seed, of 0.2 or 0.4: their deviation is 0.1 with a factor of 10 / 9 under the root.
    half = 2.262 * 0.1 * np.sqrt(10 / 9) / np.sqrt(10)
    assert told[0] == ["method", "colour, net, plain lines: 30 right", "30 wrong"]
    assert told[1] == ["a", "0.50 ± 0.00", f"0.30 ± {half:.2f}"]
    few = np.tile(np.array([[True] * 7 + [False]]), (1, 3))[:, :20]
    assert page.wrong_answers(Table([replace(one, right=few) for one in table.grades])) == [["method"]]


def test_the_variance_is_shared_out_by_where_it_comes_from() -> None:
    edges = np.zeros((2, 1, 3))
    images = np.array([0.0, 0.3, 0.6])[None, None].repeat(2, axis=0)
    by_method = np.concatenate([edges, 0 * images, 0 * images + 1], axis=1)
    assert _table(by_method).variance("plain")["method"] == pytest.approx(1)
    by_image = np.concatenate([edges, images, images], axis=1)
    assert _table(by_image).variance("plain")["image"] == pytest.approx(1)
    swapped = np.concatenate(
        [edges, np.array([0.0, 1.0])[:, None, None] + 0 * images, np.array([1.0, 0.0])[:, None, None] + 0 * images],
        axis=1,
    )
    found = _table(swapped).variance("plain")
    assert found["training × method"] == pytest.approx(1)
    assert sum(found.values()) == pytest.approx(1)
    assert _table(swapped).alike("plain")[0] == pytest.approx(-1)  # the order is turned round


def test_ranks_begin_at_the_best() -> None:
    values = np.concatenate([np.zeros((3, 1, 4)), np.full((3, 1, 4), 0.2), np.full((3, 1, 4), 0.8)], axis=1)
    ranks = _table(values).ranks("plain")
    assert list(ranks) == ["b", "a"]
    assert ranks["b"] == pytest.approx((1, 1, 1))
