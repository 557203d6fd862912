"""The arrows of the house point down, and what a command needs at once is quick to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cnnlab

PACKAGE = Path(cnnlab.__file__).parent

# From the bottom up: a module imports only from floors below its own, or beside it where listed together.
FLOORS = [
    {"cnnlab"},
    {"cnnlab.figures.style"},
    {"cnnlab.figures.charts", "cnnlab.figures.tables", "cnnlab.figures.tiles"},
    {
        "cnnlab.heads",
        "cnnlab.hardware",
        "cnnlab.figures",
        "cnnlab.page",
        "cnnlab.cli",
        "cnnlab.schedules",
        "cnnlab.layers",
        "cnnlab.augment",
        "cnnlab.files",
        "cnnlab.processes",
    },
    {"cnnlab.checkpoints", "cnnlab.nets", "cnnlab.weighting", "cnnlab.data.splits", "cnnlab.data.drawing"},
    {"cnnlab.data.lines", "cnnlab.data.mnist", "cnnlab.explain.probe"},
    {
        "cnnlab.classifier",
        "cnnlab.explain.activations",
        "cnnlab.explain.filters",
        "cnnlab.explain.heatmaps",
        "cnnlab.explain.scores",
    },
    {"cnnlab.explain.subjects", "cnnlab.explain.grading"},
    {"cnnlab.runs", "cnnlab.comparison"},
    {"cnnlab.progress", "cnnlab.start"},
    {"cnnlab.report", "cnnlab.explain.pictures", "cnnlab.comparison_report"},
    {"cnnlab.training", "cnnlab.explain.explanation", "cnnlab.explain.score_card"},
    {"cnnlab.train", "cnnlab.score", "cnnlab.compare", "cnnlab.explain.__main__"},
]
COMMANDS = {"cnnlab.train", "cnnlab.score", "cnnlab.compare", "cnnlab.explain.__main__"}
METHODS = {"probe", "activations", "filters", "heatmaps", "scores"}


def _modules() -> dict[str, set[str]]:
    """{module: the modules of the package that it imports}."""
    imports = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnnlab"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    file = PACKAGE.parent / Path(*whole.split("."))
                    is_module = file.with_suffix(".py").exists() or file.is_dir()
                    found.add(whole if is_module else str(node.module))
        imports[name] = found
    return imports


def test_the_arrows_point_down() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module, imports in _modules().items():
        if module in ("cnnlab.data", "cnnlab.explain"):  # a docstring alone
            assert not imports
            continue
        assert module in floor, f"{module} has no floor yet"
        for imported in imports:
            assert floor[imported] < floor[module], f"{module} must not import {imported}"
            assert imported not in COMMANDS, f"nobody imports a command: {module} imports {imported}"


def test_only_figures_imports_matplotlib() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.parent.name == "figures" or "matplotlib" not in path.read_text(), path


def test_the_methods_know_nothing_of_lightning_hydra_and_runs() -> None:
    for name in METHODS:
        text = (PACKAGE / "explain" / f"{name}.py").read_text()
        assert not any(
            word in text for word in ("import lightning", "hydra", "cnnlab.runs", "cnnlab.data")
        ), name


def test_a_command_does_not_import_torch_before_it_needs_it() -> None:
    code = f"import sys, {', '.join(sorted(COMMANDS))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
