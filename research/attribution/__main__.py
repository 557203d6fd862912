"""python -m research.attribution: grade many attribution methods on many networks."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import checked, run_command
from research import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="attribution")
def main(cfg: DictConfig) -> None:
    """Run the command with `research/conf/attribution.yaml`."""
    with checked(cfg):
        from research.attribution.report import benchmark_run

        benchmark_run(cfg)


if __name__ == "__main__":
    run_command(main, "attribution", CONF)
