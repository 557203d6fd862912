"""The versions of packages, and the commit."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cnnlab import __version__

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "captum", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    known = {"cnnlab": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def commit() -> str | None:
    """Return the git commit of this checkout, with "-dirty" if it was edited; None for a wheel."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
