"""python -m cnnlab.train: train a network, test it once, and write a run folder."""

from __future__ import annotations

import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab.cli import command, config_with_choices
from cnnlab.io import write_atomically, write_json


def record_failure(cfg: DictConfig, error: Exception) -> None:
    """Say in the folder of a sweep's job why it failed before it began."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN and not (folder / "summary.json").is_file() and not cfg.get("resume"):
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
        write_json(folder / "summary.json", {"status": "failed", "error": str(error), "seed": cfg.get("seed")})
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config_with_choices(cfg), resolve=True))


if __name__ == "__main__":
    command("train", "cnnlab.run_plan.train_command", record_failure)
