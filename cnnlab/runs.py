"""Run folders: the only thing that passes between commands. Whoever has one can rebuild the data, the
network and its weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import AliasToken, YAMLError, scan

from cnnlab import __version__
from cnnlab.build import build_datamodule, build_net, refused
from cnnlab.callbacks.checkpoint import checkpoint_path, load_checkpoint
from cnnlab.cli import CONF
from cnnlab.data.datamodule import ImageDataModule
from cnnlab.errors import UserError
from cnnlab.io import read_csv
from cnnlab.models.classifier import Classifier
from cnnlab.models.networks import MultiHeadNet

MOST_BYTES = 1_000_000  # of a config.yaml or summary.json
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "captum", "numpy")

# Runs written by version 0.1 name their classes and settings so.
_RENAMED = {
    "cnnlab.nets.": "cnnlab.models.networks.",
    "cnnlab.data.lines.LineData": "cnnlab.data.lines.LineDataModule",
    "cnnlab.data.mnist.MnistData": "cnnlab.data.vision.TorchvisionDataModule",
}


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
        """What `config.yaml` says. Raises `UserError` where it is broken."""
        file = self.path / "config.yaml"
        try:
            config = OmegaConf.create(_text(file))
        except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        groups = ("data", "net")
        whole = isinstance(config, DictConfig) and all(isinstance(config.get(group), DictConfig) for group in groups)
        if not whole or not set(config) >= {"experiment", "trainer"}:
            raise UserError(f"{file} is not the configuration of a run, or cut short")
        assert isinstance(config, DictConfig)
        return _today(config)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says; {} where there is none. Raises `UserError` where it is broken."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}
        try:
            summary = json.loads(_text(file))
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        if not isinstance(summary, dict):
            raise UserError(f"{file} is not the summary of a run")
        return summary

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv`, one an epoch. Raises `UserError` where it is broken."""
        file = self.path / "metrics.csv"
        try:
            return read_csv(file) if file.is_file() else []
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    @property
    def title(self) -> str:
        return title(self.config)

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint "best" or "last"; `UserError` where there is none."""
        path = checkpoint_path(self.path, name)
        if not path.is_file():
            raise UserError(f"{self.path} has no {path.parent.name}/{path.name}: no epoch has been validated yet")
        return path

    def datamodule(self, stage: str | None = None) -> ImageDataModule:
        """The run's data set, with the splits of a stage ("fit", "test") or all. Raises `UserError` where the
        configuration names code that is not trusted."""
        check_trusted(self.config.data, self.path / "config.yaml")
        return build_datamodule(self.config, stage)

    def weights(self) -> dict[str, Tensor]:
        """The best weights of the run's network, {name: tensor}."""
        state = load_checkpoint(self.checkpoint("best"))["state_dict"]
        prefix = "net."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def net(self, datamodule: ImageDataModule) -> MultiHeadNet:
        """The run's network with its best weights, in evaluation mode."""
        check_trusted(self.config.net, self.path / "config.yaml")
        net = build_net(self.config, datamodule)
        with refused(str(self.checkpoint("best"))):
            net.load_state_dict(self.weights())
        return net.eval()


def _text(file: Path) -> str:
    """The text of a file of a run; `ValueError` where it is longer than any that cnnlab writes, or holds YAML aliases,
    which it never writes, and which can grow without bound."""
    if file.stat().st_size > MOST_BYTES:
        raise ValueError
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml" and "*" in text and any(isinstance(token, AliasToken) for token in scan(text)):
        raise ValueError
    return text


def title(config: Mapping[str, Any]) -> str:
    """What a run is called: its experiment and its data set."""
    options = config.get("options") or {}
    return f"{config['experiment']} on {options['data']}" if "data" in options else str(config["experiment"])


def check_trusted(config: Any, file: Path) -> None:
    """Raise `UserError` where a configuration from outside would run code that cnnlab's own files do not name, or
    asks for what only this machine knows. CNNLAB_TRUST=<package>,... names packages whose own classes and
    functions may run."""
    node = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{file} holds the interpolation {node}; a run's configuration is written without any")
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_" and str(value) not in shipped_targets() and not _trusted_by_user(str(value)):
                package = str(value).partition(".")[0]
                raise UserError(f"{file} would run {value}; if you trust it, set CNNLAB_TRUST={package}")
            check_trusted(value, file)


@cache
def shipped_targets() -> frozenset[str]:
    """Every `_target_` that the files in `conf/` name."""
    texts = [path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text))


def _trusted_by_user(target: str) -> bool:
    """Whether CNNLAB_TRUST names the package that the target's object is of, however it is spelt."""
    packages = [name for name in os.environ.get("CNNLAB_TRUST", "").split(",") if name]
    if target.partition(".")[0] not in packages:
        return False
    with refused(target):
        module = str(getattr(get_object(target), "__module__", ""))
    return module.partition(".")[0] in packages


def load_initial_weights(classifier: Classifier, base: Run) -> None:
    """Give a classifier the best weights of a run with the same network. In the heads that are trained, a
    tensor of another shape stays as it is: the last layer of a head that got one more class.

    Raises `UserError` where anything else differs.
    """
    state, weights = classifier.net.state_dict(), base.weights()
    fitting = {name: w for name, w in weights.items() if name in state and w.shape == state[name].shape}
    trained = classifier.train_heads or classifier.net.head_names
    for name in state.keys() - fitting.keys():
        if name.partition(".")[0] not in trained:
            raise UserError(f"init_from={base.path} does not fit: its {name} has another shape, or is not there")
    classifier.net.load_state_dict({**state, **fitting})


def newest(outputs: Path) -> Run:
    """The run below `outputs` that finished last, but for those to debug. Raises `UserError` where there is none."""
    files = sorted(outputs.rglob("summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with suppress(UserError):  # a broken one among others
            run = Run(file.parent)
            if run.finished and not (run.config.get("options") or {}).get("debug"):
                return run
    raise UserError(f"there is no finished run in {outputs}/: train one (python -m cnnlab.train) or set run=<folder>")


def open_run(path: str | None) -> Run:
    """The run folder at `path`, or the newest finished one in `outputs/` where it is None."""
    return Run(path) if path else newest(Path("outputs"))


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    found = {"cnnlab": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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


def _today(config: DictConfig) -> DictConfig:
    """A run's configuration as today's code reads it: version 0.1 had other names for the same things."""
    for group in ("data", "net"):
        target = str(config[group].get("_target_", ""))
        for old, new in _RENAMED.items():
            if target == old or (old.endswith(".") and target.startswith(old)):
                config[group]._target_ = target.replace(old, new)
    if "fresh" in config.data:
        config.data.resample_each_epoch = config.data.pop("fresh")
    if config.data.get("_target_") == _RENAMED["cnnlab.data.mnist.MnistData"] and "train" not in config.data:
        mnist = {"_target_": "cnnlab.data.mnist.MNIST", "_partial_": True, "root": config.data.root}
        config.data.update({"head": "digit", "train": {**mnist, "train": True}, "test": {**mnist, "train": False}})
    return OmegaConf.merge({"bn_momentum": 0.99}, config)  # type: ignore[return-value]
