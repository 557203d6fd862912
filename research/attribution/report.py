"""The benchmark: train networks, audit them, and write the page. Existing results are reused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from cnnlab.api import Run, train
from cnnlab.data.backgrounds import BACKGROUNDS
from cnnlab.data.ground_truth import LineTruths
from cnnlab.interpret.attribution import Method, bind_baselines
from cnnlab.interpret.registry import build_methods
from cnnlab.models.heads import Head
from cnnlab.utils.cli import as_list, compose_config
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, did_you_mean, user_errors
from cnnlab.utils.hardware import disable_malloc_trim
from research.attribution.grades import BY_HAND, Grades, grade
from research.attribution.hand_built import left_half_evidence, left_half_net
from research.attribution.page import written
from research.attribution.table import Table

RECIPE = "multihead_report_b"  # the experiment from which the networks of a breadth differ


@dataclass(frozen=True)
class Job:
    """A network that is graded: of a `run` that is there, trained with `words`, or by hand (neither)."""

    scene: str
    network: str
    seed: int
    run: Run | None = None
    words: tuple[str, ...] | None = None

    @property
    def drawn(self) -> str:
        """The background of its lines."""
        return "plain" if self.scene == BY_HAND else self.scene

    @property
    def name(self) -> str:
        return f"{self.scene}_{self.network}_{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.network}, {self.scene}, seed {self.seed}"


def benchmark_run(cfg: DictConfig) -> Path:
    """Run the benchmark with `conf/attribution.yaml`; return the page's path.

    Raises `UserError` before anything is trained.
    """
    disable_malloc_trim()
    methods = build_methods(cfg.method)
    jobs = list(_jobs(cfg))
    _check(cfg, jobs, methods)
    folder = Path(str(cfg.out)).expanduser()
    (folder / "grades").mkdir(parents=True, exist_ok=True)
    data = {scene: LineTruths(cfg.images, scene) for scene in dict.fromkeys(job.drawn for job in jobs)}
    every = []
    for number, job in enumerate(jobs, start=1):
        path = folder / "grades" / f"{job.name}.npz"
        found = _kept(path, data[job.drawn], job, cfg)
        if found is None:
            echo(f"{number}/{len(jobs)}  {job.title}")
            found = _graded(job, cfg, methods, data[job.drawn], folder)
            found.save(path)
        every.append(found)
    return written(folder, Table(every), OmegaConf.to_container(cfg))


def _jobs(cfg: DictConfig) -> Iterator[Job]:
    """Yield the jobs. Raises `UserError` for unknown scenes, networks and runs."""
    if cfg.runs is not None:
        for path in as_list(cfg.runs):
            run = Run(path)
            yield Job(str(run.config.data.get("background", "plain")), run.path.name, int(run.config.seed), run)
    else:
        for scene, names in cfg.scenes.items():
            if scene not in BACKGROUNDS:
                raise UserError(f"there is no scene '{scene}'{did_you_mean(str(scene), BACKGROUNDS)}")
            for name in names:
                if name not in cfg.networks:
                    raise UserError(f"scenes.{scene}: there is no network '{name}'{did_you_mean(name, cfg.networks)}")
                for seed in cfg.seeds:
                    yield Job(str(scene), name, seed, words=tuple(cfg.networks[name]))
    if cfg.by_hand:
        yield Job(BY_HAND, BY_HAND, 0)


def _check(cfg: DictConfig, jobs: Sequence[Job], methods: Mapping[str, Method]) -> None:
    if not 1 <= cfg.images <= 1000:
        raise UserError(f"images={cfg.images} is not in 1..1000")
    if not isinstance(cfg.seeds, ListConfig) or not all(type(seed) is int for seed in cfg.seeds):
        raise UserError(f"seeds={cfg.seeds} are not whole numbers")
    if cfg.device != "auto":
        with user_errors(f"device={cfg.device}"):
            torch.zeros(1, device=str(cfg.device))
    names = [job.name for job in jobs]
    for job in jobs:
        if names.count(job.name) > 1:
            raise UserError(f"two networks are called {job.name}: give their run folders different names")
    for words in {job.words for job in jobs if job.words is not None}:  # before the first is trained
        with TemporaryDirectory() as place, compose_config("train", [f"experiment={RECIPE}", *words], place):
            pass
    for name in cfg.maps:
        if name in methods:
            raise UserError(f"maps.{name} has the name of a method")


def _asked(job: Job, cfg: DictConfig) -> dict[str, Any]:
    """What grades depend on besides the images: the network, the methods' settings, maps made elsewhere."""
    network = str(job.run.path) if job.run is not None else list(job.words or ())
    return {"of": network, "settings": OmegaConf.to_container(cfg.method), "given": OmegaConf.to_container(cfg.maps)}


def _kept(path: Path, data: LineTruths, job: Job, cfg: DictConfig) -> Grades | None:
    """Return existing scores of the same job, or None."""
    if not path.is_file():
        return None
    found = Grades.load(path)
    asked = {"protocol": data.fingerprint, **_asked(job, cfg)}
    return found if asked == {name: found.facts.get(name) for name in asked} else None


def _graded(job: Job, cfg: DictConfig, methods: Mapping[str, Method], data: LineTruths, folder: Path) -> Grades:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else str(cfg.device)
    facts: dict[str, Any] = {
        **_asked(job, cfg),
        "scene": job.scene,
        "network": job.network,
        "seed": job.seed,
        "drawn": job.drawn,
        "device": device,
    }
    with Console().status("") as status, user_errors("device or method"):
        more: dict[str, Any] = {"device": device, "progress": lambda text: status.update(f"{job.title}: {text}")}
        if job.scene == BY_HAND:
            head = data.heads[-1]
            exact = {head.name: left_half_evidence(data.images)}
            return grade(left_half_net(head), methods, data, facts, [head], exact, **more)
        run = job.run or _trained(job, folder)
        unknown = [head for head in run.heads if head not in data.heads]
        if unknown:
            raise UserError(f"{run.path}: its head {unknown[0].name} is not one of lines in red and blue")
        heads = [head for head in data.heads if head in run.heads]
        bound = {name: bind_baselines(method, lambda: run.baseline_images) for name, method in methods.items()}
        facts |= {"accuracy": run.summary.get("test", {}).get("joint_accuracy"), "run": str(run.path)}
        return grade(run.net, bound, data, facts, heads, given=_given(job, cfg, heads, len(data)), **more)


def _trained(job: Job, folder: Path) -> Run:
    words = [*(job.words or ()), f"data.background={job.scene}", "skip_finished=true", "tags=[research]"]
    return train(RECIPE, job.seed, words, folder / "networks" / job.name)


def _given(job: Job, cfg: DictConfig, heads: list[Head], count: int) -> dict[str, dict[str, Tensor]]:
    """Maps that were made elsewhere. Raises `UserError` for a file that is not there, or holds other things."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, pattern in cfg.maps.items():
        for head in heads:
            path = Path(str(pattern).format(scene=job.scene, network=job.network, seed=job.seed, head=head.name))
            try:
                maps = torch.from_numpy(np.load(path).astype(np.float32))
            except (OSError, ValueError) as error:
                raise UserError(f"maps.{name}: {path} cannot be read as an array ({type(error).__name__})") from error
            if maps.shape != (count, 28, 28) or not maps.isfinite().all():
                raise UserError(f"maps.{name}: {path} holds no finite maps ({count}, 28, 28), but {tuple(maps.shape)}")
            found.setdefault(str(name), {})[head.name] = maps
    return found
