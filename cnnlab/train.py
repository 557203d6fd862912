"""python -m cnnlab.train: train a network, test it once, and write a run folder."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab.utils.cli import CONF, checked, config_with_choices, run_command, with_experiment_of_data
from cnnlab.utils.io import write_atomically, write_json


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run the command with `conf/train.yaml`; return the validation accuracy of the kept weights, for sweepers."""
    try:
        with checked(cfg):
            from cnnlab.launch import train_command  # here, so that a typo is answered without torch

            return train_command(cfg)
    except Exception as error:  # in a sweep also a mistake
        _record_failed_job(cfg, error)
        raise


def _record_failed_job(cfg: DictConfig, error: Exception) -> None:
    """Write why a job of a sweep failed before its run began."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN and not (folder / "summary.json").is_file() and not cfg.get("resume"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
        write_json(folder / "summary.json", {"status": "failed", "error": str(error), "seed": cfg.get("seed")})
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config_with_choices(cfg), resolve=True))


if __name__ == "__main__":
    sys.argv[1:] = with_experiment_of_data(sys.argv[1:])
    run_command(main, "train")
