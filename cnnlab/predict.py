"""python -m cnnlab.predict: answer images of your own with a trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from cnnlab.utils.cli import CONF, as_list, checked, run_command
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError
from cnnlab.utils.io import new_folder, to_csv, write_atomically


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Write `predictions.csv` and `predictions.json` for the images that `conf/predict.yaml` names."""
    with checked(cfg):
        predict(cfg)


def predict(cfg: DictConfig) -> None:
    """Run the command. Raises `UserError` where no image can be read, before anything is written."""
    from cnnlab.api import Run  # here, so that a typo is answered without torch
    from cnnlab.data.image_io import image_files
    from cnnlab.interpret.inputs import read_inputs
    from cnnlab.run import find_run
    from cnnlab.utils.versions import versions

    run = Run(find_run(cfg.run))
    if cfg.images is None:
        raise UserError("name the images: images=<file, folder or pattern>, or a list of these")
    unreadable: dict[str, str] = {}
    inputs = read_inputs(image_files(as_list(cfg.images)), run.image_shape, run.input_type, unreadable)
    prediction = run.predict(inputs)
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "predict")
    write_atomically(folder / "predictions.csv", to_csv(prediction.rows()))
    content: dict[str, Any] = {"run": str(run.path), "title": run.title, "versions": versions()}
    content |= {"images": prediction.answers(), "unreadable": unreadable}
    write_atomically(folder / "predictions.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    echo(str(prediction))
    for why in unreadable.values():
        echo(f"! {why}")
    echo(f"table  {folder / 'predictions.csv'}")


if __name__ == "__main__":
    run_command(main, "predict")
