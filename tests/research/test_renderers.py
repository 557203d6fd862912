"""python -m research.renderers and `Run.robustness`: on small runs."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import cnnlab
from research.renderers import report
from research.renderers.external import RENDERERS
from research.renderers.line_bench import LineBench
from research.renderers.report import robustness
from tests.conftest import TINY_LINES, in_process, run_train


def test_the_command_writes_a_page_a_table_and_a_picture(
    lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process("research.renderers", f"run={lines_run}", "per_kind=1", f"out={tmp_path}/out")
    folder = tmp_path / "out" / "1"
    said = capsys.readouterr().out
    assert f"page  {folder / 'index.html'}" in said
    rows = list(csv.DictReader((folder / "robustness.csv").read_text().splitlines()))
    assert {row["lines"] for row in rows} >= {"antialiased", *RENDERERS, "upper right quarter", "on grey (0.3)"}
    ours = next(row for row in rows if row["lines"] == "antialiased")
    assert list(ours) == ["group", "lines", "length", "width", "angle", "colour", "joint", "moments"]
    assert float(ours["moments"]) == 1
    assert float(ours["joint"]) <= min(float(ours[head]) for head in ("length", "width", "angle", "colour"))
    assert json.loads((folder / "manifest.json").read_text())["count"] == 96
    page = (folder / "index.html").read_text()
    assert "Lines drawn by others: worse in" in page
    assert page.count("<tr>") >= len(rows)
    assert (folder / "robustness.png").stat().st_size < 500_000


def test_without_opencv_its_rows_are_left_out_and_named(
    lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # its import then fails
    in_process("research.renderers", f"run={lines_run}", "per_kind=1", f"out={tmp_path}/out")
    assert "! left out: OpenCV, OpenCV, literal ends" in capsys.readouterr().out
    assert "OpenCV" not in (tmp_path / "out" / "1" / "robustness.csv").read_text()


def test_the_shares_are_those_of_the_networks_own_answers(lines_run: Path) -> None:
    run = cnnlab.load(lines_run)
    found = robustness(run, per_kind=1)
    bench = LineBench.draw(1, ("red", "blue"))
    first = next(bench.variations())
    said = run.predict(first.images)
    classes = ["red", "blue"]
    right = [classes[k] == answer for k, answer in zip(bench.truth["colour"].tolist(), said["colour"], strict=True)]
    assert found.rows()[0]["colour"] == pytest.approx(sum(right) / 96)
    assert found.readings[0].examples.shape == (4, 3, 28, 28)
    assert "all right" in repr(found)


def test_a_head_of_all_combinations_answers_for_each_of_its_parts(tmp_path: Path) -> None:
    run = run_train(tmp_path / "run", "experiment=lines_deep", *TINY_LINES, "data.colours=[blue,green]")
    rows = robustness(cnnlab.load(run), per_kind=1).rows()
    assert set(rows[0]) == {"group", "lines", "length", "width", "angle", "colour", "joint", "moments"}
    assert rows[0]["moments"] == 1  # green lines, too


def test_a_run_that_is_not_about_lines_has_no_bench(digits_run: Path) -> None:
    with pytest.raises(SystemExit, match="does not answer about lines and their colour: there is no bench for it"):
        in_process("research.renderers", f"run={digits_run}")
    assert not (digits_run / "robustness").exists()


def test_lines_of_another_colour_or_size_have_no_bench(lines_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lines_run, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for change in ({"image_shape": [1, 32, 32]}, {"heads": {"colour": {"classes": ["red", "yellow"], "parts": {}}}}):
        changed = {**summary, "task": summary["task"] | change}
        (tmp_path / "run" / "summary.json").write_text(json.dumps(changed))
        with pytest.raises(cnnlab.UserError, match="there is no bench for it"):
            robustness(cnnlab.load(tmp_path / "run"), per_kind=1)


@pytest.mark.parametrize("per_kind", [0, 201])
def test_a_senseless_number_of_lines_is_refused(lines_run: Path, per_kind: int) -> None:
    with pytest.raises(cnnlab.UserError, match=rf"per_kind={per_kind} is not in 1..200"):
        robustness(cnnlab.load(lines_run), per_kind=per_kind)


def test_its_answer_is_made_from_the_numbers() -> None:
    def reading(group: str, name: str, joint: float, moments: float) -> report.Reading:
        return report.Reading(group, name, {}, joint, moments, torch.zeros(4, 3, 28, 28))

    good = [reading("drawn by cnnlab", "a", 0.995, 1.0), reading("at another place", "b", 1.0, 0.9)]
    assert report.Robustness(good, 96).answer() == [
        "As well as a reader without learning, to within a point: lines drawn by cnnlab and at another place."
    ]
    names = ("drawn by others", "p", 0.5, 1.0), ("drawn by others", "q", 0.3, 0.7), ("drawn by others", "r", 0.9, 0.9)
    assert report.Robustness([*good, *(reading(*each) for each in names)], 96).answer()[0] == (
        "Lines drawn by others: worse in 2 of 3 ways, most for “p”, where 50.00 % of the lines are read right, "
        "100.00 % by moments."
    )
