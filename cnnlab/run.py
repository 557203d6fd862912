"""A run on disk: its configuration, metrics, network and data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import AliasEvent, YAMLError

from cnnlab.data.datamodule import BatchedDataset, ImageDataModule, sample_indices
from cnnlab.data.image_io import INPUT_TYPES
from cnnlab.models.heads import Head, heads_from_json
from cnnlab.models.networks import MultiHeadNet
from cnnlab.training.build import build_datamodule, build_net
from cnnlab.training.classifier import Classifier
from cnnlab.utils.checkpoints import checkpoint_path, load_checkpoint
from cnnlab.utils.cli import as_list
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, did_you_mean, user_errors
from cnnlab.utils.io import read_csv
from cnnlab.utils.trust import check_trusted

MAX_BYTES = 1_000_000  # of a config.yaml or summary.json
MAX_PIXELS = 10_000_000  # of an image
BASELINES = 8  # training images that attribution methods compare an image with
READ_ERRORS = (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError)


class RunFolder:
    """A run folder, opened by its path.

    Code that its configuration names runs if cnnlab ships it, if CNNLAB_TRUST names its package, or if the run is
    `trusted`, like one that this process trained. Raises `UserError` where `path` is not a run folder, and where a
    file in it is missing or broken.
    """

    def __init__(self, path: Path | str, trusted: bool = False) -> None:
        self.trusted = trusted
        self.path = Path(path).expanduser().resolve()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run folder: it holds no config.yaml")

    @cached_property
    def config(self) -> DictConfig:
        """The content of `config.yaml`."""
        file = self.path / "config.yaml"
        try:
            text = _text(file)
            if any(isinstance(event, AliasEvent) for event in yaml.parse(text)):
                raise ValueError("cnnlab writes no aliases, and those of aliases fill the memory")
            config = OmegaConf.create(text)
        except READ_ERRORS as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        whole = isinstance(config, DictConfig) and all(isinstance(config.get(name), DictConfig) for name in GROUPS)
        if not whole or "experiment" not in config:
            raise UserError(f"{file} is not the configuration of a run, or cut short")
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`; {} without one."""
        file = self.path / "summary.json"
        if not file.is_file():
            return {}
        try:
            summary = json.loads(_text(file), parse_constant=_refuse)
        except READ_ERRORS as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error
        if not isinstance(summary, dict):
            raise UserError(f"{file} is not the summary of a run")
        return summary

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv`, one per epoch."""
        file = self.path / "metrics.csv"
        try:
            return read_csv(file) if file.is_file() else []
        except READ_ERRORS as error:
            raise UserError(f"{file} is broken ({type(error).__name__})") from error

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    @property
    def title(self) -> str:
        return title(self.config)

    @cached_property
    def _task(self) -> tuple[tuple[Head, ...], tuple[int, int, int], str]:
        try:
            task = self.summary["task"]
            channels, height, width = task["image_shape"]
            shape, heads = (channels, height, width), heads_from_json(task["heads"])
            whole = all(type(size) is int and size > 0 for size in shape) and channels * height * width <= MAX_PIXELS
            if not (whole and heads and task["input_type"] in INPUT_TYPES):
                raise ValueError
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            file = self.path / "summary.json"
            raise UserError(f"{file} does not describe the heads and images of the network") from error
        return heads, shape, task["input_type"]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of the network."""
        return self._task[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of its images."""
        return self._task[1]

    @property
    def input_type(self) -> str:
        """How other images are converted to its own, one of `data.image_io.INPUT_TYPES`."""
        return self._task[2]

    def head(self, name: str | None = None) -> Head:
        """Return the head `name`; the only head needs no name."""
        return head_named(self.heads, name)

    def datamodule(self, stage: str | None = None) -> ImageDataModule:
        """Return the data module with the splits of a stage ("fit", "test") or all."""
        self._check_trusted("data")
        data = build_datamodule(self.config, stage)
        if [head.classes for head in data.heads] != [head.classes for head in self.heads]:
            raise UserError(f"the data of {self.path} has other classes now than when it was trained")
        return data

    @cached_property
    def test_data(self) -> ImageDataModule:
        """The data module with the test split, opened once. Raises `UserError` where a folder's pictures have changed:
        others would be held out."""
        data = self.datamodule("test")
        if data.state_dict() and checkpoint_path(self.path, "best").is_file():
            data.load_state_dict(load_checkpoint(self.checkpoint("best"))[type(data).__qualname__])
        return data

    @property
    def test_split(self) -> BatchedDataset:
        """The images that the network was tested on."""
        return self.test_data.splits["test"]

    @cached_property
    def baseline_images(self) -> Tensor:
        """Random training images float32 (R, C, H, W), for methods that compare an image with others."""
        split = self.datamodule("fit").splits["train"]
        return split.inputs(sample_indices(len(split), min(BASELINES, len(split))))

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint "best" or "last"."""
        path = checkpoint_path(self.path, name)
        if not path.is_file():
            trial = self.summary.get("status") == "trial"
            why = "a trial run (trainer.fast_dev_run) keeps no weights" if trial else "no epoch has been validated yet"
            raise UserError(f"{self.path} has no {path.parent.name}/{path.name}: {why}")
        return path

    def weights(self) -> dict[str, Tensor]:
        """Return the best weights of the network, {name: tensor}."""
        state = load_checkpoint(self.checkpoint("best"))["state_dict"]
        return {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}

    @cached_property
    def net(self) -> MultiHeadNet:
        """The network with its best weights, in evaluation mode. It needs no data set."""
        self._check_trusted("net")
        net = build_net(self.config, self.image_shape, self.heads)
        with user_errors(str(self.checkpoint("best"))):
            net.load_state_dict(self.weights())
        return net.eval()

    def _check_trusted(self, group: str) -> None:
        if not self.trusted:
            check_trusted(self.config[group], self.path / "config.yaml")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


GROUPS = ("data", "net", "trainer")


def head_named(heads: Sequence[Head], name: str | None = None) -> Head:
    """Return the head `name`; the only head needs no name. Raises `UserError` for an unknown name."""
    by_name = {head.name: head for head in heads}
    if name is None and len(heads) == 1:
        return heads[0]
    if name is None:
        raise UserError(f"name a head: {', '.join(by_name)}")
    if name not in by_name:
        raise UserError(f"there is no head '{name}'{did_you_mean(str(name), by_name)}")
    return by_name[name]


def _text(file: Path) -> str:
    """Return the text of a file; `ValueError` for one longer than cnnlab writes."""
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} has more than {MAX_BYTES:,} bytes")
    return file.read_text(encoding="utf-8")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def title(config: Mapping[str, Any]) -> str:
    """Return the name of a run: its experiment and its data set."""
    data = (config.get("options") or {}).get("data")
    if data == "folder":
        data = Path(str(config["data"]["root"])).name
    return f"{config['experiment']} on {data}" if data else str(config["experiment"])


def load_initial_weights(classifier: Classifier, base: RunFolder) -> None:
    """Load the best weights of a run with the same network. In heads that are trained, a tensor of another shape is
    kept: the last layer of a head that got a new class. Heads that the network lacks are left out. Raises `UserError`
    for any other difference."""
    state, weights = classifier.net.state_dict(), base.weights()
    fitting = {name: w for name, w in weights.items() if name in state and w.shape == state[name].shape}
    trained = classifier.train_heads or classifier.net.head_names
    for name in state.keys() - fitting.keys():
        if name.partition(".")[0] not in trained:
            raise UserError(f"init_from={base.path} does not fit: its {name} has another shape, or is not there")
    classifier.net.load_state_dict({**state, **fitting})


def finished_runs(outputs: Path | str = "outputs") -> Iterator[Path]:
    """Yield the folders of the finished runs below `outputs`, newest first. Debugging runs, runs tagged "research" and
    broken ones are left out."""
    files = sorted(Path(outputs).rglob("summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with suppress(UserError):
            run = RunFolder(file.parent)
            debug, tags = (run.config.get("options") or {}).get("debug"), as_list(run.config.get("tags"))
            overfit = run.config.trainer.get("overfit_batches")
            if run.finished and not debug and not overfit and "research" not in tags:
                yield run.path


def newest_run(outputs: Path | str = "outputs") -> Path:
    """Return the folder of the run below `outputs` that finished last."""
    for path in finished_runs(outputs):
        return path
    raise UserError(f"there is no finished run in {outputs}/: train one (python -m cnnlab.train) or set run=<folder>")


def find_run(path: str | None) -> Path:
    """Return `path`, or the newest finished run in `outputs/`, and print which one that is."""
    if path:
        return Path(path)
    newest = newest_run()
    echo(f"run  {newest}")
    return newest
