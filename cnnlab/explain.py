"""python -m cnnlab.explain: show heatmaps, activations and filters of a trained network."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, net_as_target, run_command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="explain")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/explain.yaml`."""
    with checked(cfg):
        from cnnlab.reporting.explanation import explain_run  # here, so that a typo is answered without torch

        explain_run(cfg)


if __name__ == "__main__":
    sys.argv[1:] = net_as_target(sys.argv[1:])
    run_command(main, "explain")
