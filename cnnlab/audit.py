"""python -m cnnlab.audit: which heatmaps of a network can be trusted?"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, net_as_target, run_command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="audit")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/audit.yaml`."""
    with checked(cfg):
        from cnnlab.reporting.audit import audit_run  # here, so that a typo is answered without torch

        audit_run(cfg)


if __name__ == "__main__":
    sys.argv[1:] = net_as_target(sys.argv[1:])
    run_command(main, "audit")
