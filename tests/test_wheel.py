"""The wheel carries all that the commands need, and works in another directory without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TINY_LINES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def test_both_commands_work_from_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = set(archive.namelist())
        assert not any(name.startswith(("tests/", "outputs/")) for name in names)
        page = (
            "reporting/templates/play.html",
            "reporting/templates/base.css",
            "reporting/templates/pixels.js",
            "play/static/play.js",
        )
        assert {f"cnnlab/{name}" for name in page} <= names
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    assert python("-c", "import cnnlab; print(cnnlab.__file__)").startswith(str(site))
    said = python("-m", "cnnlab.train", "experiment=multihead", *TINY_LINES)
    (summary,) = (elsewhere / "outputs" / "multihead").glob("*/summary.json")
    assert json.loads(summary.read_text())["commit"] is None
    assert f"python -m cnnlab.explain run={summary.parent}" in said
    assert "val % all" in said.splitlines()[1]  # not a terminal: a line an epoch
    said = python("-m", "cnnlab.explain", "ascent.steps=1", "layers=[stem.conv]")
    assert said == f"run  {summary.parent}\npage  {summary.parent / 'explain' / '1' / 'index.html'}\n"
