"""python -m cnnlab.explain: show what a trained network learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnlab.cli import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def explain(cfg: DictConfig) -> str:
    """Explain what `cfg` asks for; returns the path of the page."""
    from cnnlab.explain.explanation_report import (
        explain_run,  # torch comes with it: a typo is answered before
    )

    return str(explain_run(cfg))


if __name__ == "__main__":
    command("explain", explain)
