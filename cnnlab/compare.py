"""python -m cnnlab.compare: many runs in one table, with their learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnlab.cli import as_list, command
from cnnlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compare(cfg: DictConfig) -> str:
    """Compare the runs that `cfg` names; returns the path of the page."""
    from pathlib import Path

    from cnnlab import comparison_report  # slow to import: a typo is answered before

    paths = [Path(path).expanduser() for path in as_list(cfg.runs)]
    if not paths:
        raise UserError("name the runs: runs=<run folder, or folder with runs inside>, or runs=[<one>,<two>]")
    out = Path(str(cfg.out)).expanduser() if cfg.out else None
    return str(comparison_report.compare(paths, out, {str(key): str(value) for key, value in cfg.where.items()}))


if __name__ == "__main__":
    command("compare", compare)
