"""What the benchmarks claim is worked out and written down right; the peers themselves are an extra."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from research.performance.plain_torch import branched, classifier1
from research.performance.side_by_side import (
    AVX2,
    Library,
    Result,
    Rounds,
    avx2_alone,
    best,
    compared,
    in_turns,
    report,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _written(file: Path, name: str) -> float:
    with file.open("a") as log:
        log.write(name)
    return float(file.stat().st_size)


def make(file: Path, names: str) -> Rounds:
    return {name: partial(_written, file, name) for name in names}


def broken() -> Rounds:
    raise ValueError("no such library")


def test_contestants_take_turns_and_the_warm_up_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "log"
    seconds = in_turns([Library(make, file, "ab"), Library(make, file, "c")], rounds=8)
    said = file.read_text()
    turns = [said[start : start + 3] for start in range(0, len(said), 3)]
    assert [sorted(turn) for turn in turns] == [["a", "b", "c"]] * 9
    assert {turn[0] for turn in turns} == {"a", "b", "c"}  # nobody is always the first
    assert seconds == {
        name: [3 * place + turn.index(name) + 1 for place, turn in enumerate(turns)][1:] for name in "abc"
    }


def test_a_contestant_that_cannot_start_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        in_turns([Library(broken)], rounds=1)
    assert "no such library" in capfd.readouterr().err


def test_a_ratio_is_that_of_neighbours_in_one_round() -> None:
    result = compared({"ours": [1, 2, 4], "theirs": [3, 4, 4]}, "work", "ours", "theirs", 1.6)
    assert result.values == [3, 2, 1]
    assert result.cells == ["work", "theirs", "2 times", "1 to 3", "3", "≥ 1.6"]
    assert Result("drawing", "training", [1.5], at_most=2, unit="%").cells[2:] == [
        "1.5 %", "1.5 to 1.5", "1", "≤ 2",
    ]  # fmt: skip


def test_the_best_peer_has_the_shortest_median() -> None:
    seconds = {"a": [1.0, 9.0, 9.0], "b": [5.0, 5.0, 20.0], "ours": [1.0, 1.0, 1.0]}
    assert best(seconds, ["a", "b"]) == "b"


def test_avx2_alone_is_when_every_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not avx2_alone()
    for name, value in AVX2.items():
        monkeypatch.setenv(name, value)
    assert avx2_alone()


def test_the_networks_in_plain_pytorch_have_the_heads_of_ours() -> None:
    answers = branched()(torch.zeros(2, 3, 28, 28))  # the number of parameters is checked as they are made
    assert {name: tuple(given.shape) for name, given in answers.items()} == {
        "angle": (2, 12), "length": (2, 1), "width": (2, 1), "colour": (2, 1),
    }  # fmt: skip
    assert classifier1()(torch.zeros(2, 1, 28, 28))["digit"].shape == (2, 10)


@pytest.mark.slow
# those that need no peer
@pytest.mark.parametrize("name", ["scale", "startup"])
def test_a_benchmark_measures_something(name: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    words = [sys.executable, "-m", f"research.performance.{name}", "--rounds", "1", "--out", str(file)]
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT, timeout=300)
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["benchmark"] == name
    assert record["results"] or record["figures"]


def test_a_report_is_markdown() -> None:
    result = {"work": "w", "against": "a", "values": [1.0], "at_least": 1, "at_most": None, "unit": "s"}
    text = report({"results": [result], "figures": [{"who": "x", "of": "y", "images/s": "5"}]})
    assert text.splitlines() == [
        "| work | against | median | spread | rounds | goal |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| w | a | 1 s | 1 to 1 | 1 | ≥ 1 |",
        "",
        "| who | of | images/s |",
        "| --- | --- | ---: |",
        "| x | y | 5 |",
    ]


def test_the_tables_of_the_record_are_those_of_its_files() -> None:
    filled = runpy.run_path(str(ROOT / "research" / "docs" / "performance.py"))["filled"]
    page = (DOCS / "performance.md").read_text()
    assert "<!-- benchmark: training -->" in page
    assert filled(page) == page
