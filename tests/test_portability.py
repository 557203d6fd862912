"""The commands work where POSIX's own modules and signals are missing, as on Windows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_LINES

pytestmark = pytest.mark.slow

WITHOUT_POSIX = """
import os, runpy, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # an import raises ImportError
del os.fork, signal.SIGHUP
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


POSIX_SIGNALS = r"signal\.(SIGKILL|SIGHUP|SIGUSR1)\b"  # Lightning itself asks for the others on Linux


def test_no_command_needs_a_signal_of_posix() -> None:
    for file in (Path(__file__).parent.parent / "cnnlab").rglob("*.py"):
        assert not re.search(POSIX_SIGNALS, file.read_text(encoding="utf-8")), file


def _run(folder: Path, *words: str) -> str:
    command = [sys.executable, "-c", WITHOUT_POSIX, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_command_works_without_posix(tmp_path: Path) -> None:
    _run(tmp_path, "cnnlab.train", "experiment=multihead", *TINY_LINES, "hydra.run.dir=run")
    _run(tmp_path, "cnnlab.explain", "run=run", "indices=[0]", "ascent.steps=1", "layers=[stem.conv]")
    _run(tmp_path, "cnnlab.audit", "run=run", "images=8", "method=[saliency]")
    _run(tmp_path, "cnnlab.predict", "run=run", "images=run/figures/samples.png")
    _run(tmp_path, "cnnlab.compare", "runs=run", "out=run")
    _run(tmp_path, "cnnlab.play", "--help")


@pytest.mark.parametrize("platform", ["x86_64-pc-windows-msvc", "aarch64-apple-darwin"])
def test_the_package_resolves_with_wheels_alone(platform: str, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    project = Path(__file__).parent.parent / "pyproject.toml"
    words = [str(uv), "pip", "compile", "--quiet", "--extra", "play", "--only-binary", ":all:"]
    words += ["--python-platform", platform]
    settings = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(
        [*words, str(project)], capture_output=True, text=True, check=False, cwd=tmp_path, env=settings
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch==" in done.stdout
