"""python -m research.attribution: grade many heatmap methods on many networks, before and after training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from cnnlab.utils.cli import checked, run_command
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, did_you_mean
from research import CONF

if TYPE_CHECKING:
    from cnnlab.interpret.attribution import Method
    from research.attribution.grades import Grades

ASKED = ("images", "split", "method")  # settings that grades depend on
COMMON = ("skip_finished=true", "tags=[research]")  # words of every training


@dataclass(frozen=True)
class Job:
    """A network to train and grade: its scene, its name, the words of its training, and its seed."""

    scene: str
    network: str
    words: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.scene}_{self.network}_{self.seed}"


def jobs(cfg: DictConfig) -> Iterator[Job]:
    """Yield the jobs seed by seed. Raises `UserError` for an unknown network."""
    for seed in cfg.seeds:
        for scene, names in cfg.grid.items():
            for name in names:
                if name not in cfg.networks:
                    raise UserError(f"grid.{scene}: there is no network '{name}'{did_you_mean(name, cfg.networks)}")
                yield Job(str(scene), str(name), (*cfg.networks[name], *cfg.scenes[scene]), int(seed))


def benchmark(cfg: DictConfig) -> None:
    """Train and grade the networks that have no grades yet. Raises `UserError` before anything is trained."""
    from cnnlab.interpret.registry import build_methods
    from cnnlab.utils.hardware import disable_malloc_trim
    from research.attribution.grades import Grades

    disable_malloc_trim()
    methods, folder, every = build_methods(cfg.method), Path(str(cfg.out)).expanduser(), list(jobs(cfg))
    settings: Any = OmegaConf.to_container(cfg)
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split}: choose one of train, val, test")
    for number, job in enumerate(every, start=1):
        path = folder / "grades" / f"{job.name}.npz"
        asked = {"words": list(job.words), **{name: settings[name] for name in ASKED}}
        if path.is_file() and Grades.load(path).facts["asked"] == asked:
            continue
        echo(f"{number}/{len(every)}  {job.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        train_and_grade(job, methods, cfg, folder / "networks" / job.name, {"asked": asked}).save(path)
    echo(f"{len(every)} networks are graded in {folder / 'grades'}")


def train_and_grade(
    job: Job, methods: Mapping[str, Method], cfg: DictConfig, folder: Path, facts: dict[str, Any]
) -> Grades:
    """Train the network in `folder`, or take the one that is there, and grade the maps of all methods."""
    from cnnlab.api import train
    from cnnlab.interpret.attribution import bind_baselines
    from research.attribution.grades import grade
    from research.attribution.scenes import SceneDataModule, pairs

    experiment, *words = job.words
    run = train(experiment, job.seed, [*words, "data=scenes", *COMMON], folder, CONF / "train")
    module = run.datamodule("fit")
    assert isinstance(module, SceneDataModule)
    bound = {name: bind_baselines(method, lambda: run.baseline_images) for name, method in methods.items()}
    facts |= {"scene": job.scene, "network": job.network, "seed": job.seed}
    facts |= {"accuracy": run.summary["test"]["joint_accuracy"]}
    return grade(run.net, bound, pairs(module, cfg.images, cfg.split), facts, job.seed)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="attribution")
def main(cfg: DictConfig) -> None:
    """Run the command with `research/conf/attribution.yaml`."""
    with checked(cfg):
        benchmark(cfg)


if __name__ == "__main__":
    run_command(main, "attribution", CONF)
