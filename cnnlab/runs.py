"""Run folders: the only thing that passes between commands. Whoever has one can rebuild the data, the
network and its weights."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from cnnlab import UserError
from cnnlab.checkpoints import load_checkpoint
from cnnlab.classifier import Classifier
from cnnlab.cli import words
from cnnlab.data.splits import LabData
from cnnlab.layers import set_bn_momentum
from cnnlab.nets import Net

TRUSTED = ("cnnlab.", "torch.optim.", "torch.nn.")
PACKAGES = ("cnnlab", "torch", "lightning", "torchmetrics", "hydra-core", "captum", "numpy")


def build_data(cfg: DictConfig) -> LabData:
    """The data set of a configuration, ready to serve."""
    with _refused("data"):
        data: LabData = instantiate(cfg.data, _partial_=True, _convert_="all")()
    return data


def build_net(cfg: DictConfig, data: LabData) -> Net:
    """The untrained network of a configuration, for the heads and channels of `data`."""
    with _refused("net"):
        build = instantiate(cfg.net, _partial_=True, _convert_="all")
        net: Net = build(in_channels=data.in_channels, heads=data.heads)
    return net


def build_classifier(cfg: DictConfig, data: LabData) -> Classifier:
    """Network, loss, optimizer and schedule of a configuration. Raises `UserError` for a bad value."""
    with _refused("weighting"):
        weighting = instantiate(cfg.weighting, _partial_=True, _convert_="all")(heads=data.heads)
    with _refused("augment"):
        augment = instantiate(cfg.augment)
    net = build_net(cfg, data)
    set_bn_momentum(net, cfg.bn_momentum)
    classifier = Classifier(
        net=net,
        heads=data.heads,
        optimizer=instantiate(cfg.optimizer),
        schedule=instantiate(cfg.schedule),
        weighting=weighting,
        augment=augment,
        l2=cfg.l2,
        train_heads=words(cfg.train_heads),
        seed=cfg.seed,
    )
    with _refused("optimizer or schedule"):  # now, not when the training begins
        classifier.make_schedule(classifier.make_optimizer(classifier.trained()), 1)
    return classifier


@contextmanager
def _refused(group: str) -> Iterator[None]:
    """A value that a constructor does not take is the user's mistake."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error


class Run:
    """A run folder that was written before, opened by its path.

    Raises `UserError` where `path` is not a run folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run folder: it holds no config.yaml")

    @cached_property
    def config(self) -> DictConfig:
        """What `config.yaml` says. Raises `UserError` where it is broken, or names code not of cnnlab."""
        file = self.path / "config.yaml"
        try:
            config = OmegaConf.load(file)
        except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        if not isinstance(config, DictConfig) or not set(config) >= {"experiment", "data", "net", "trainer"}:
            raise UserError(f"{file} is not the configuration of a run, or cut short")
        _check_code(config, file)
        return config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says; {} while the run has not ended. Raises `UserError` where it is broken."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        if not isinstance(summary, dict):
            raise UserError(f"{file} is not the summary of a run")
        return summary

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint "best" or "last"; `UserError` where there is none."""
        path = self.path / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            raise UserError(f"{self.path} has no checkpoints/{name}.ckpt: its first epoch has not ended")
        return path

    def data(self, stage: str | None = None) -> LabData:
        """The run's data set, with the splits of a stage ("fit", "test") or all."""
        data = build_data(self.config)
        data.setup(stage)
        return data

    def weights(self) -> dict[str, Tensor]:
        """The best weights of the run's network, {name: tensor}."""
        state = load_checkpoint(self.checkpoint("best"))["state_dict"]
        prefix = "net."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def net(self, data: LabData) -> Net:
        """The run's network with its best weights, in evaluation mode."""
        net = build_net(self.config, data)
        with _refused(str(self.checkpoint("best"))):
            net.load_state_dict(self.weights())
        if self.config.trainer.channels_last:
            net.to(memory_format=torch.channels_last)
        return net.eval()


def _check_code(node: Any, file: Path) -> None:
    """Raise `UserError` where a configuration from outside would run code of neither cnnlab nor torch's
    optimizers and layers. CNNLAB_TRUST=<package>,... names others that may."""
    if isinstance(node, ListConfig):
        node = {place: node[place] for place in range(len(node))}
    elif not isinstance(node, DictConfig):
        return
    for key, value in node.items():
        trusted = [*TRUSTED, *(f"{name}." for name in os.environ.get("CNNLAB_TRUST", "").split(",") if name)]
        if key == "_target_" and not str(value).startswith(tuple(trusted)):
            package = str(value).partition(".")[0]
            raise UserError(f"{file} would run {value}; if you trust it, set CNNLAB_TRUST={package}")
        _check_code(value, file)


def begin_with(classifier: Classifier, base: Run) -> None:
    """Give a classifier the best weights of a run with the same network. In the heads that are trained, a
    tensor of another shape stays as it is: the last layer of a head that got one more class.

    Raises `UserError` where anything else differs.
    """
    state, weights = classifier.net.state_dict(), base.weights()
    fitting = {name: w for name, w in weights.items() if name in state and w.shape == state[name].shape}
    trained = classifier.train_heads or classifier.net.head_names
    for name in state.keys() - fitting.keys():
        if name.partition(".")[0] not in trained:
            raise UserError(
                f"from_run={base.path} does not fit: its {name} has another shape, or is not there"
            )
    classifier.net.load_state_dict({**state, **fitting})


def newest(outputs: Path) -> Run:
    """The run below `outputs` that finished last. Raises `UserError` where there is none."""
    runs = []
    for file in outputs.rglob("summary.json"):
        with suppress(UserError):  # a broken one among others
            run = Run(file.parent)
            if run.finished:
                runs.append(run)
    if not runs:
        raise UserError(
            f"there is no finished run in {outputs}/: train one (python -m cnnlab.train) or set run=<folder>"
        )
    return max(runs, key=lambda run: (run.path / "summary.json").stat().st_mtime)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {package: version(package) for package in PACKAGES}


def commit() -> str | None:
    """The git commit of this checkout, with "-dirty" where it was edited; None for an installed wheel."""
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
