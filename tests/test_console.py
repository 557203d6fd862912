"""Consoles and paths as they are elsewhere: not UTF-8, full, narrow, and folders with names that need quoting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlab.api import Run
from cnnlab.utils.console import as_table
from tests.conftest import TINY_LINES, in_process, run_train

WORDS = ("experiment=multihead", *TINY_LINES, "trainer.max_epochs=1")


def _train(folder: Path, *words: str, to: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "cnnlab.train", *WORDS, f"hydra.run.dir={folder}", *words]
    with open(to or os.devnull, "wb") as console:
        return subprocess.run(
            command,
            stdout=console if to else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            check=False,
        )


@pytest.mark.slow
def test_a_console_that_knows_ascii_alone(tmp_path: Path) -> None:
    done = _train(tmp_path / "run", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"15?" in done.stdout or b"?" in done.stdout  # of an angle's degree sign
    done.stdout.decode("ascii")
    assert "°" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    compared = subprocess.run(
        [sys.executable, "-m", "cnnlab.compare", f"runs={tmp_path}/run"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stderr
    assert b"Traceback" not in compared.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_console_that_takes_nothing_does_not_stop_a_run(tmp_path: Path) -> None:
    done = _train(tmp_path / "run", to="/dev/full")
    assert Run(tmp_path / "run").finished, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain-1", "it's", "a=b,c", "[one] two", "größe 5°", 'say "hi"'])
def test_the_commands_that_a_run_prints_can_be_typed_back(
    name: str, tmp_path: Path, lines_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    in_process("train", *WORDS, f"hydra.run.dir='{quoted}'")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("explain it")]
    command = line.partition("python ")[2] + " ascent.steps=1 indices=[0] layers=[stem.conv]"
    done = subprocess.run(f"{sys.executable} {command}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "explain" / "1" / "index.html").is_file()


@pytest.mark.slow
def test_at_twenty_columns_the_result_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    run_train(tmp_path / "run", *WORDS)
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.split() and line.split()[0] in ("length", "width", "angle", "colour")]
    assert len(rows) == 4
    assert all(len(row) <= 20 and row.endswith("%") for row in rows)


def test_a_table_is_as_wide_as_its_cells() -> None:
    rows = [["head", "F1"], ["angle", "99.9"], ["colour", "100"]]
    assert as_table(rows).splitlines() == ["head      F1", "angle   99.9", "colour   100"]
    assert as_table(rows, left=2).splitlines() == ["head    F1", "angle   99.9", "colour  100"]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["~experiment", "hydra.verbose=1", "hydra.verbose=true"])
def test_what_hydra_takes_works_or_is_one_line(word: str, tmp_path: Path) -> None:
    done = _train(tmp_path / "run", word)
    assert b"Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith(b"error: ")
        assert done.stderr.count(b"\n") == 1
        assert not (tmp_path / "run").exists()
    else:
        assert Run(tmp_path / "run").finished


@pytest.mark.slow
def test_jobs_of_a_sweep_with_values_of_the_wrong_type_say_so_in_their_folders(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"data\.batch_size=many is not a whole number"):
        run_train(tmp_path / "unused", "-m", f"hydra.sweep.dir={tmp_path}/sweep", *WORDS, "data.batch_size=many,96")
    failed, worked = (json.loads((tmp_path / "sweep" / job / "summary.json").read_text()) for job in "01")
    assert (failed["status"], failed["error"]) == ("failed", "data.batch_size=many is not a whole number")
    assert "data.batch_size=many is not a whole number" in (tmp_path / "sweep" / "0" / "log.txt").read_text()
    assert worked["status"] == "finished"
