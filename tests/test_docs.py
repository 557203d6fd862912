"""The documentation is true: its Python runs, its notebooks run, and the site has no link that leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

import cnnlab
from cnnlab.api import Run
from cnnlab.data.mnist import MNIST
from cnnlab.utils.errors import UserError
from tests.conftest import TINY_LINES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_the_page_on_python_runs_from_top_to_bottom(
    lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cnnlab.train

    def quick(experiment: str, **words: Any) -> Run:
        return train(experiment, **{**words, "overrides": [*words.get("overrides", ()), *TINY_LINES]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cnnlab, "train", quick, raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL):
        exec(compile(block.replace("images=50", "images=20"), "python.md", "exec"), names)
    assert names["said"].probabilities["angle"].shape == (1, 12)
    assert set(names["result"].verdicts) == {"Grad-CAM", "brightness"}


def test_the_readme_runs_too(lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cnnlab, "train", lambda *_, **__: cnnlab.load(lines_run), raising=False)
    (tmp_path / "my.png").write_bytes((lines_run / "figures" / "samples.png").read_bytes())
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    exec(compile(block, "README.md", "exec"), {"net": net, "images": torch.rand(8, 3, 28, 28)})
    assert (tmp_path / "why" / "manifest.json").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(path: Path, tmp_path: Path) -> None:
    if path.stem.startswith("1_"):
        try:
            MNIST(str(Path("~/.cache/cnnlab").expanduser()), download=True)
        except UserError as error:
            pytest.skip(f"MNIST cannot be had: {error}")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    for made in (notebook, nbformat.read(path, as_version=4)):  # and as it is kept
        outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 2
    assert "/tmp" not in path.read_text(encoding="utf-8")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.found.append(value)
            elif name in ("id", "name") and value:
                self.names.add(value)


def test_no_link_of_the_site_leads_nowhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    settings = {**os.environ, "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {}
    for path in (tmp_path / "site").rglob("*.html"):
        pages[path] = _Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    assert len(pages) >= 12
    for path, page in pages.items():
        for link in page.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].names, f"{path.name}: {link}"
