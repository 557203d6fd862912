"""What the README and the documentation tell a reader to type works."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.conftest import TINY_LINES, in_process, run_train
from tests.data.test_image_folder import make_folders
from tests.interpret.test_audit import run_audit
from tests.interpret.test_explain import run_explain
from tests.play.conftest import Served
from tests.test_train import MNIST_SWEEPS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING")), *sorted((ROOT / "docs").glob("*.md"))]


def _commands(module: str) -> list[str]:
    """Every command line of that module in a code block of the documentation, without its comment."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
            joined = block.replace("\\\n", " ")
            lines += [line.partition("#")[0].strip() for line in joined.splitlines()]
    return sorted({line for line in lines if f"-m {module}" in line and " net=torchvision" not in line})


def _words(line: str, module: str, run: Path) -> list[str]:
    return [word.replace("<run>", str(run)) for word in line.partition(module)[2].split()]


def _tiny(words: list[str], digits: tuple[str, ...]) -> tuple[str, ...]:
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    return digits if names and ("mnist" in names[0] or names[0] in MNIST_SWEEPS) else TINY_LINES


def test_there_are_commands_to_try() -> None:
    assert _commands("cnnlab.train")
    assert _commands("cnnlab.explain")
    assert _commands("cnnlab.audit")
    assert _commands("cnnlab.compare")
    assert _commands("cnnlab.predict")
    assert _commands("cnnlab.export")
    assert _commands("research.renderers")
    assert _commands("cnnlab.play")


@pytest.mark.parametrize("line", _commands("cnnlab.train"))
def test_the_training_commands_work(
    line: str, lines_run: Path, digits: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = _words(line, "cnnlab.train", lines_run)
    if any(word.startswith("resume=") for word in words):
        with pytest.raises(SystemExit, match=r"is finished; raise trainer"):
            run_train(tmp_path / "run", *words)
        return
    if "experiment=folder" in words:
        make_folders(tmp_path / "pictures", {"red": 9, "blue": 9})
        words = [word.replace("<folder>", "pictures") for word in words]
        run_train(tmp_path / "run", *words, "data.size=16", "trainer.max_epochs=1")
        return
    kept = [word for word in words if not word.startswith(("trainer.max_epochs", "data="))]
    once = ["hydra.mode=RUN"] if "experiment=sweep_" in line else []  # of a sweep one run
    few = ["callbacks.grad_cam_monitor.images=5"] if "grad_cam_monitor" in line else []
    run_train(
        tmp_path / "run", *kept, *few, *once, *_tiny(words, digits)[:-1], "trainer.max_epochs=1",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize("line", _commands("cnnlab.explain"))
def test_the_explaining_commands_work(
    line: str, lines_run: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to(lines_run.parent)
    run = digits_run if "mnist" in line else lines_run
    (tmp_path / "my.png").write_bytes((lines_run / "figures" / "samples.png").read_bytes())
    words = [word for word in _words(line, "cnnlab.explain", run) if not word.startswith("out=")]
    run_explain(*words, f"out={tmp_path / 'out'}", "ascent.steps=1")
    assert (tmp_path / "out" / "1" / "manifest.json").exists()


@pytest.mark.parametrize("line", _commands("cnnlab.audit"))
def test_the_scoring_commands_work(line: str, lines_run: Path, digits_run: Path, tmp_path: Path) -> None:
    words = _words(line, "cnnlab.audit", digits_run if "mnist" in line else lines_run)
    kept = [word for word in words if not word.startswith(("out=", "images="))]
    run_audit(f"run={lines_run}", *kept, f"out={tmp_path / 'out'}", "images=8")
    assert (tmp_path / "out" / "1" / "checks.csv").exists()


@pytest.mark.parametrize("line", _commands("cnnlab.compare"))
def test_the_comparing_commands_work(line: str, lines_run: Path, tmp_path: Path) -> None:
    words = line.partition("cnnlab.compare")[2].replace("outputs/sweeps/<time>", str(lines_run)).split()
    in_process("compare", *words, f"out={tmp_path}")
    assert (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    "line", [line for name in ("cnnlab.predict", "cnnlab.export", "research.renderers") for line in _commands(name)]
)
def test_the_other_commands_work(line: str, lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.png").write_bytes((lines_run / "figures" / "samples.png").read_bytes())
    name = line.split()[2]
    in_process(name, *_words(line, name, lines_run), f"out={tmp_path / 'out'}")
    assert list((tmp_path / "out" / "1").iterdir())


@pytest.mark.parametrize("line", _commands("cnnlab.play"))
def test_the_playing_commands_work(line: str, lines_run: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to(lines_run.parent)
    server = Served(*_words(line, "cnnlab.play", lines_run), folder=tmp_path)
    assert server.status(server.address) == 200
    assert server.ask("runs")["runs"]
    assert server.end() == 0


def test_the_tables_of_the_results_are_those_of_their_csv_files() -> None:
    filled = runpy.run_path(str(ROOT / "research" / "docs" / "results.py"))["filled"]
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        assert filled(page.read_text()) == page.read_text(), page


def test_every_figure_of_explanations_is_made_from_the_grades_of_every_image() -> None:
    script = runpy.run_path(str(ROOT / "research" / "docs" / "explanations.py"))
    found = script["tables"](script["read"]())
    for name in script["PAGES"]:
        page = (ROOT / "docs" / name).read_text()
        assert script["filled"](page, found) == page, name
    prose = re.sub(r"<!-- table.*?<!-- end -->", "", (ROOT / "docs" / "explanations.md").read_text(), flags=re.DOTALL)
    assert not re.findall(r"\d\.\d", prose)  # all others stand in tables
    assert len(prose.split()) < 1500


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text()):
            target = link[0] or link[1]
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
