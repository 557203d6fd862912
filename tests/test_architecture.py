"""The rules of the layout: imports point one way, few files in the root, commands start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab
from cnnlab.__main__ import COMMANDS

PACKAGE = Path(cnnlab.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the bottom to the top. A module imports from its own room and from rooms further down.
ROOMS = (
    ("cnnlab", "cnnlab.utils", "cnnlab.models"),
    ("cnnlab.plots",),
    ("cnnlab.data",),
    ("cnnlab.interpret",),
    ("cnnlab.training",),
    ("cnnlab.run",),
    ("cnnlab.reporting",),
    ("cnnlab.pipeline",),
    ("cnnlab.launch",),
    ("cnnlab.api",),
    ("cnnlab.play", "cnnlab.__main__", *(f"cnnlab.{name}" for name in COMMANDS)),
)
COMMAND_MODULES = [f"cnnlab.{name}.__main__" if name == "play" else f"cnnlab.{name}" for name in COMMANDS]


def _module(path: Path) -> str:
    return ".".join(["cnnlab", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Return every module of cnnlab and every package that a file imports, also within functions."""
    known = {_module(module) for module in MODULES}
    imports = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imports |= {name if name in known else node.module for name in names}
    return imports


def _level(module: str) -> int:
    room = next(name for size in (2, 1) if (name := ".".join(module.split(".")[:size])) in sum(ROOMS, ()))
    return next(level for level, rooms in enumerate(ROOMS) if room in rooms)


def _ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name.split(".")[0] == "cnnlab"}


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_imports_point_one_way(path: Path) -> None:
    """Rule 1, imports within functions and for types included."""
    if path == PACKAGE / "__init__.py":
        return  # it offers the names of `api`, when they are asked for
    assert {name for name in _ours(path) if _level(name) > _level(_module(path))} == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {_module(path): _ours(path) for path in MODULES if path != PACKAGE / "__init__.py"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_root_has_at_most_14_files() -> None:
    """Rule 2."""
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 14


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_what_a_room_may_know(path: Path) -> None:
    imports, module = _imports(path), _module(path)
    packages = {name.split(".")[0] for name in imports}
    assert "research" not in packages  # it is not in the wheel
    assert "matplotlib" not in packages or module.startswith("cnnlab.plots")
    assert not imports & set(COMMAND_MODULES)
    if module.startswith("cnnlab.models"):
        assert {name for name in imports if name.startswith("cnnlab")} <= {
            "cnnlab.models.heads",
            "cnnlab.models.layers",
        }
    if module.startswith("cnnlab.interpret"):
        assert "lightning" not in packages


def test_the_training_reads_no_state_of_hydra() -> None:
    assert "HydraConfig" not in (PACKAGE / "pipeline.py").read_text()


def test_a_command_does_not_import_torch_before_it_needs_it() -> None:
    code = f"import sys, {', '.join(sorted(COMMAND_MODULES))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_that_of_the_changes_and_the_citation() -> None:
    changes, citation = (
        (PACKAGE.parent / name).read_text(encoding="utf-8").splitlines() for name in ("CHANGELOG.md", "CITATION.cff")
    )
    assert next(line for line in changes if line.startswith("## ")) == f"## {cnnlab.__version__}"
    assert f"version: {cnnlab.__version__}" in citation
