"""A head trained again on a network that was trained before: nothing else changes, not by a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cnnlab.api import Run
from tests.conftest import TINY_LINES, run_train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["multihead", "multihead_report_b", "multihead_hue_blind"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return run_train(folder, f"experiment={request.param}", *TINY_LINES)


@pytest.fixture(scope="module")
def with_green(base: Path) -> Path:
    words = ("experiment=add_colour", f"init_from={base}", *TINY_LINES)
    return run_train(base.parent / "green", *words)


def test_only_the_colour_head_has_changed(base: Path, with_green: Path) -> None:
    before, after = Run(base).weights(), Run(with_green).weights()
    changed = {name for name in before if name not in after or not torch.equal(before[name], after[name])}
    assert changed
    assert {name.split(".")[0] for name in changed} == {"colour"}
    assert after["colour.out.weight"].shape == (3, 512)


def test_the_other_heads_answer_red_and_blue_lines_as_before_to_the_bit(base: Path, with_green: Path) -> None:
    runs = [Run(base), Run(with_green)]
    red_and_blue = runs[0].datamodule().splits["test"].images(torch.arange(288)).float() / 255
    with torch.no_grad():
        before, after = (run.net(red_and_blue) for run in runs)
    for head in ("length", "width", "angle"):
        assert torch.equal(before[head], after[head])


def test_a_hue_blind_network_sees_a_green_line_as_a_red_one(base: Path, with_green: Path) -> None:
    run = Run(with_green)
    red = run.datamodule().splits["test"].images(torch.arange(0, 432, 3)).float() / 255
    green = red[:, [1, 0, 2]]
    with torch.no_grad():
        net = run.net
        answers = net(red), net(green)
    for head in ("length", "width", "angle"):
        same = torch.equal(answers[0][head], answers[1][head])
        assert same == ("hue_blind" in base.parent.name)
    assert not torch.equal(answers[0]["colour"], answers[1]["colour"])


def test_the_summary_counts_green_lines_apart(with_green: Path) -> None:
    by_class = Run(with_green).summary["test"]["by_class"]
    assert set(by_class["colour"]) == {"red", "blue", "green"}
    assert set(by_class["colour"]["green"]) == {"joint_accuracy", "length", "width", "angle", "colour"}
    heads = Run(with_green).summary["test"]["heads"]
    mean = sum(by_class["colour"][colour]["angle"] for colour in ("red", "blue", "green")) / 3
    assert heads["angle"]["accuracy"] == pytest.approx(mean)


def test_a_resumed_run_stays_frozen_and_needs_its_base_no_more(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(base)
    folder = run_train(tmp_path / "run", "experiment=add_colour", f"init_from={copy}", *TINY_LINES)
    copy.unlink()
    run_train(tmp_path / "unused", f"resume={folder}", "trainer.max_epochs=3")
    before, after = Run(base).weights(), Run(folder).weights()
    assert torch.equal(before["angle.bn1.running_mean"], after["angle.bn1.running_mean"])
    assert torch.equal(before["stem.conv.weight"], after["stem.conv.weight"])


def test_what_does_not_fit_is_refused(lines_run: Path, digits_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (["experiment=add_colour"], r"train_heads=\['colour'\]: set init_from=<run>"),
        (["experiment=add_colour", f"init_from={lines_run}", "net.filters=8"], "drop net.filters=8"),
        (["experiment=add_colour", f"init_from={lines_run}", "train_heads=[color]"], "no head 'color'"),
        (["experiment=add_colour", f"init_from={lines_run}", "train_heads=0"], "no head '0'"),
        (["experiment=add_colour", f"init_from={lines_run}", "train_heads=[angle]"], "its colour.out"),
        (["experiment=add_colour", f"init_from={digits_run}"], "init_from=.* does not fit"),
        (["experiment=add_colour", f"init_from={tmp_path}"], "is not a run folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_train(tmp_path / "unused", *words, *TINY_LINES)
        assert not (tmp_path / "unused").exists()
