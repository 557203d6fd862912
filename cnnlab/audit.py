"""python -m cnnlab.audit: which heatmaps of a network can be trusted?."""

from __future__ import annotations

import re
import sys

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, run_command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="audit")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/audit.yaml`."""
    with checked(cfg):
        from cnnlab.reporting.audit import audit_run  # here, so that a typo is answered without torch

        audit_run(cfg)


if __name__ == "__main__":
    sys.argv[1:] = [re.sub("^net=", "net._target_=", word) for word in sys.argv[1:]]  # `net` alone names a config group
    run_command(main, "audit")
