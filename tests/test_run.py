"""Run folders from outside: broken, edited, or with code in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import cnnlab
from cnnlab.api import Run, newest
from cnnlab.data.lines import class_head
from cnnlab.models.heads import Head, heads_from_json, heads_to_json
from cnnlab.utils.errors import UserError
from cnnlab.utils.versions import versions
from tests.conftest import TINY_LINES, in_process
from tests.interpret.test_audit import run_audit
from tests.interpret.test_explain import run_explain


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


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("run", [run_explain, run_audit], ids=["explain", "audit"])
def test_what_is_broken_is_named(run: Callable[..., object], what: str, copy: Path, tmp_path: Path) -> None:
    name, content, message = BROKEN[what]
    file = copy / name
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 4] if content is None else content.encode())
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(f"run={copy}", f"out={tmp_path / 'out'}", *(["images=8"] if run is run_audit else []))
    assert not (tmp_path / "out").exists()


def test_a_broken_summary_is_named_where_it_is_needed_and_passed_over_where_not(copy: Path, lines_run: Path) -> None:
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
        _ = run.net


ATTACKS = [
    *("os.system", "subprocess.run", "builtins.eval", "builtins.exec", "pickle.loads", "shutil.rmtree"),
    *(
        "cnnlab.utils.io.os.system",
        "cnnlab.utils.io.write_atomically",
        "cnnlab.utils.cli.os.system",
        "cnnlab.utils.cli.sys.exit",
    ),
    *(
        "cnnlab.run.subprocess.run",
        "cnnlab.run.json.loads",
        "cnnlab.training.build.instantiate",
        "cnnlab.train.write_json",
    ),
    *("torch.load", "torch.save", "torch.hub.load", "torch.nn.Module", "torch.nn.modules.module.os.system"),
    *("torch.optim.optimizer.functools.partial", "torch.optim.adam.torch.load", "torch.utils.data.DataLoader"),
    *("torchvision.datasets.folder.os.remove", "torchvision.datasets.utils.download_url", "lightning.pytorch.trainer"),
    *("lightning.pytorch.Trainer.fit", "hydra.utils.call", "hydra.utils.get_method", "hydra.utils.instantiate"),
    *(
        "cnnlab.models.networks.Branched.__init__",
        "cnnlab.models.networks.nn.Linear",
        "cnnlab.data.mnist.subprocess.run",
    ),
    *("cnnlab.data.mnist.pickle.loads", "cnnlab.data.mnist.hashlib.md5", "cnnlab.data.mnist.tempfile.mkdtemp"),
    *("importlib.import_module", "cnnlab", "cnnlab.", ".os.system", "", "CNNLAB.models.networks.Branched"),
    *("cnnlab.models.networks.Branched ", " os.system", "cnnlab.models..networks.Branched", "datetime.datetime.now"),
]


def _rebuild(folder: Path) -> None:
    run = Run(folder)
    run.datamodule()
    _ = run.net


@pytest.mark.parametrize("target", ATTACKS)
@pytest.mark.parametrize("place", ["data", "net", "net.filters", "data.colours"])
def test_a_configuration_with_other_code_in_it_is_refused(target: str, place: str, copy: Path) -> None:
    config = OmegaConf.load(copy / "config.yaml")
    node = {"_target_": target}
    if place == "data.colours":
        config.data.colours = ["red", node]  # in a list, too
    else:
        OmegaConf.update(config, place, node, merge=place in ("data", "net"))
    OmegaConf.save(config, copy / "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml would run "):
        _rebuild(copy)


def test_what_is_trusted_is_what_an_object_is_and_not_how_it_is_spelt(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "minelines.py").write_text(
        "import os\nfrom cnnlab.data.lines import LineDataModule\nclass Mine(LineDataModule): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = OmegaConf.load(copy / "config.yaml")
    config.data._target_ = "minelines.Mine"
    OmegaConf.save(config, copy / "config.yaml")
    with pytest.raises(UserError, match=r"would run minelines.Mine; if you trust it, set CNNLAB_TRUST=minelines"):
        Run(copy).datamodule()
    monkeypatch.setenv("CNNLAB_TRUST", "other,minelines")
    assert type(Run(copy).datamodule()).__name__ == "Mine"
    for reached in ("minelines.os.system", "minelines.nothing"):
        config.data._target_ = reached
        OmegaConf.save(config, copy / "config.yaml")
        with pytest.raises(UserError, match=reached):
            Run(copy).datamodule()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${oc.env:PATH,x}", "a ${now:%Y} b", "${seed}"])
def test_an_interpolation_in_a_run_folder_is_not_resolved(value: str, copy: Path) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("holdout: none", f"holdout: '{value}'"))
    with pytest.raises(UserError, match="holds the interpolation"):
        Run(copy).datamodule()


@pytest.mark.slow
def test_names_with_html_in_them_are_shown_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x>"
    in_process("train", "experiment=multihead", *TINY_LINES, f"hydra.run.dir='{folder}'")
    run_explain(f"run='{folder}'", "ascent.steps=1", "indices=[0]")
    run_audit(f"run='{folder}'", "images=8", "method=[grad_cam]")
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        assert "<img src=x>" not in text, page
        assert "&lt;img src=x&gt;" in text, page


def test_a_package_that_is_not_installed_is_left_out_of_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cnnlab itself, in a checkout that is only on the path."""
    monkeypatch.setattr("cnnlab.utils.versions.PACKAGES", ("torch", "cnnlab-that-is-not-installed"))
    assert versions() == {"cnnlab": cnnlab.__version__, "torch": torch.__version__.partition("+")[0]}


def test_heads_are_read_back_with_their_parts() -> None:
    heads = (class_head(), Head("side", ("left", "right")))
    assert heads_from_json(json.loads(json.dumps(heads_to_json(heads)))) == heads
    for broken in ({"side": ["left", "right"]}, {"side": {"classes": [1, 2], "parts": {}}}, {"side": {"classes": []}}):
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            heads_from_json(broken)


@pytest.mark.parametrize(
    "broken", [{}, [], {"image_shape": [3, 10**6, 10**6]}, {"input_type": "cat"}, {"heads": {}}, {"heads": None}]
)
def test_a_summary_that_does_not_describe_the_network_is_one_line(broken: Any, lines_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lines_run, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    task = {**summary["task"], **broken} if isinstance(broken, dict) and broken else broken
    (folder / "summary.json").write_text(json.dumps({**summary, "task": task}))
    with pytest.raises(UserError, match="does not describe the heads and images of the network"):
        _ = Run(folder).heads
