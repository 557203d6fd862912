"""Run folders from outside: broken, edited, or with code in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cnnlab import UserError
from cnnlab.runs import Run, newest
from cnnlab.train import train
from tests.conftest import TINY_LINES, in_process
from tests.test_explain import run_explain
from tests.test_score import run_score


@pytest.fixture
def copy(lines_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lines_run, tmp_path / "outputs" / "copy")


BROKEN: dict[str, tuple[str, str | None, str]] = {  # file, new content (None: half of the old), message
    "config cut short": ("config.yaml", None, "config.yaml is"),
    "config no yaml": ("config.yaml", "net: [", r"config.yaml is broken \(ParserError\)"),
    "config a list": ("config.yaml", "- 1", "config.yaml is not the configuration of a run"),
    "config empty": ("config.yaml", "", "config.yaml is not the configuration of a run"),
    "best cut short": ("checkpoints/best.ckpt", "x", "best.ckpt is broken or no checkpoint"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("run", [run_explain, run_score], ids=["explain", "score"])
def test_what_is_broken_is_named(run: Callable[..., object], what: str, copy: Path, tmp_path: Path) -> None:
    name, content, message = BROKEN[what]
    file = copy / name
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 4] if content is None else content.encode())
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(f"run={copy}", f"out={tmp_path / 'out'}", *(["images=2"] if run is run_score else []))
    assert not (tmp_path / "out").exists()


def test_a_broken_summary_is_named_where_it_is_needed_and_passed_over_where_not(
    copy: Path, lines_run: Path
) -> None:
    good = shutil.copytree(lines_run, copy.parent / "good")
    (copy / "summary.json").write_text('{"status": "fin')
    with pytest.raises(UserError, match=r"summary.json is broken"):
        _ = Run(copy).finished
    assert newest(copy.parent).path == good


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    config = OmegaConf.load(copy / "config.yaml")
    config.net.filters = 8
    OmegaConf.save(config, copy / "config.yaml")
    run = Run(copy)
    with pytest.raises(UserError, match=r"best.ckpt: .*size mismatch"):
        run.net(run.data())


def test_a_configuration_with_foreign_code_in_it_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OmegaConf.load(copy / "config.yaml")
    config.data._target_ = "os.system"
    OmegaConf.save(config, copy / "config.yaml")
    with pytest.raises(UserError, match=r"would run os.system; if you trust it, set CNNLAB_TRUST=os"):
        _ = Run(copy).config
    monkeypatch.setenv("CNNLAB_TRUST", "mine,os")
    assert Run(copy).config.data._target_ == "os.system"


def test_names_with_html_in_them_are_shown_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x>"
    in_process("train", train, "experiment=multihead", *TINY_LINES, f"hydra.run.dir='{folder}'")
    run_explain(f"run='{folder}'", "filters.steps=1", "indices=[0]")
    run_score(f"run='{folder}'", "images=2", "methods=[grad_cam]")
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        assert "<img src=x>" not in text, page
        assert "&lt;img src=x&gt;" in text, page
