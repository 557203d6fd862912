"""python -m cnnlab.play: look inside a trained network in the browser."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, checked, run_command
from cnnlab.utils.errors import check_installed


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="play")
def main(cfg: DictConfig) -> None:
    """Run the command with `conf/play.yaml`."""
    with checked(cfg):
        check_installed("play", "starlette", "uvicorn")
        from cnnlab.play.server import play_run  # here, so that a typo is answered without torch

        play_run(cfg)


if __name__ == "__main__":
    run_command(main, "play")
