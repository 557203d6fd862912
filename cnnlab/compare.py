"""python -m cnnlab.compare: compare runs in one table, with their learning curves."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, run_command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="compare")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/compare.yaml`."""
    with checked(cfg):
        from cnnlab.reporting.comparison import compare_run  # here, so that a typo is answered without torch

        compare_run(cfg)


if __name__ == "__main__":
    run_command(main, "compare")
