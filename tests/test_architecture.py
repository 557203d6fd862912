"""Rules of the house: what may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab
from cnnlab import __main__

PACKAGE = Path(cnnlab.__file__).parent
COMMANDS = [
    f"cnnlab.{name}.__main__" if name in ("explain", "play") else f"cnnlab.{name}" for name in __main__.COMMANDS
]
METHODS = (
    "network",
    "activations",
    "activation_maximization",
    "attribution",
    "attribution_metrics",
    "method_names",
    "methods/cams",
    "methods/gradients",
    "methods/perturbations",
    "evaluation",
    "ood",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Every module that a file imports at its top."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_plots_imports_matplotlib_and_nobody_imports_a_command(path: Path) -> None:
    imports = _imports(path)
    assert path.parent.name == "plots" or not any(name.startswith("matplotlib") for name in imports)
    assert not imports & set(COMMANDS)


def test_the_training_reads_no_state_of_hydra() -> None:
    assert "HydraConfig" not in (PACKAGE / "pipeline.py").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_import_research(path: Path) -> None:
    """Also not within functions: research is not in the wheel."""
    assert not re.search(r"^\s*(from|import) research\b", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_know_nothing_of_lightning_hydra_and_runs(name: str) -> None:
    foreign = ("lightning", "hydra", "omegaconf", "cnnlab.runs", "cnnlab.data", "cnnlab.build")
    assert not [name for name in _imports(PACKAGE / "explain" / f"{name}.py") if name.startswith(foreign)]


def test_a_command_does_not_import_torch_before_it_needs_it() -> None:
    code = f"import sys, {', '.join(sorted(COMMANDS))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_that_of_the_changes_and_the_citation() -> None:
    changes, citation = (
        (PACKAGE.parent / name).read_text(encoding="utf-8").splitlines() for name in ("CHANGELOG.md", "CITATION.cff")
    )
    assert next(line for line in changes if line.startswith("## ")) == f"## {cnnlab.__version__}"
    assert f"version: {cnnlab.__version__}" in citation
