"""python -m research.renderers: does a trained network read lines that other programs drew?"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import checked, run_command
from research import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="renderers")
def main(cfg: DictConfig) -> None:
    """Run the command with `research/conf/renderers.yaml`."""
    with checked(cfg):
        from research.renderers.report import robustness_run

        robustness_run(cfg)


if __name__ == "__main__":
    run_command(main, "renderers", CONF)
