"""python -m cnnlab.score: are the heatmaps of a trained network right?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnlab.cli import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def score(cfg: DictConfig) -> str:
    """Grade what `cfg` asks for; returns the path of the page."""
    from cnnlab.explain.evaluation_report import score_run  # torch comes with it: a typo is answered before

    return str(score_run(cfg))


if __name__ == "__main__":
    command("score", score)
