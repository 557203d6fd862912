"""python -m cnnlab.export: write a trained network as ONNX or as a torch.export program."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, run_command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/export.yaml`."""
    with checked(cfg):
        from cnnlab.reporting.export import export_run  # here, so that a typo is answered without torch

        export_run(cfg)


if __name__ == "__main__":
    run_command(main, "export")
