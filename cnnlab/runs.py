"""Run folders: the only thing that passes between commands. Whoever has one can rebuild the data, the
network and its weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import AliasToken, YAMLError, scan

from cnnlab.build import build_datamodule, build_net, named_method, named_methods, user_errors
from cnnlab.callbacks.checkpoint import checkpoint_path, load_checkpoint
from cnnlab.data.datamodule import BatchedDataset, ImageDataModule, sample_indices
from cnnlab.errors import UserError, did_you_mean
from cnnlab.explain.inputs import Inputs, from_outside, from_split, pick
from cnnlab.explain.network import leaf_modules
from cnnlab.explain.ood import OODDetector
from cnnlab.io import read_csv
from cnnlab.log import echo
from cnnlab.models.classifier import Classifier
from cnnlab.models.heads import Head
from cnnlab.models.networks import MultiHeadNet
from cnnlab.task import Task
from cnnlab.trust import check_trusted

if TYPE_CHECKING:  # Captum comes when it is asked for
    from cnnlab.explain.activation_maximization import Maximization
    from cnnlab.explain.activations import Activations
    from cnnlab.explain.attribution import Attribution, Method
    from cnnlab.explain.evaluation_report import Scores
    from cnnlab.prediction import Prediction

MOST_BYTES = 1_000_000  # of a config.yaml or summary.json
OOD = "ood"  # the file beside the checkpoints that knows the training images
REFERENCES = 8  # training images that an attribution method may compare an image with
SAMPLE = 500  # test images on which dead and saturated channels are judged


class Run:
    """A run folder that was written before, opened by its path. Code that its configuration names runs where cnnlab
    ships it, where CNNLAB_TRUST names it, or where the run is `trusted`, as one that was just trained here.

    Raises `UserError` where `path` is not a run folder.
    """

    def __init__(self, path: Path | str, trusted: bool = False) -> None:
        self.trusted = trusted
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
        return config

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
            trial = self.summary.get("status") == "trial"
            why = "a trial run (trainer.fast_dev_run) keeps no weights" if trial else "no epoch has been validated yet"
            raise UserError(f"{self.path} has no {path.parent.name}/{path.name}: {why}")
        return path

    @cached_property
    def task(self) -> Task:
        """What its network is asked. Raises `UserError` where `summary.json` is broken or missing."""
        try:
            return Task.from_facts(self.summary["task"])
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise UserError(
                f"{self.path / 'summary.json'} says nothing of the heads and images of the network"
            ) from error

    def head(self, name: str | None = None) -> Head:
        """The head of that name; where there is one head, it needs no name. Raises `UserError`."""
        heads = {head.name: head for head in self.task.heads}
        if name is None and len(heads) == 1:
            return self.task.heads[0]
        if name not in heads:
            raise UserError(
                f"name a head: {', '.join(heads)}"
                if name is None
                else f"there is no head '{name}'{did_you_mean(name, heads)}"
            )
        return heads[name]

    def datamodule(self, stage: str | None = None) -> ImageDataModule:
        """The run's data set, with the splits of a stage ("fit", "test") or all. Raises `UserError` where the
        configuration names code that is not trusted."""
        self._check_trusted("data")
        return build_datamodule(self.config, stage)

    @cached_property
    def test_data(self) -> ImageDataModule:
        """The run's data set with the test split, opened once."""
        return self.datamodule("test")

    @property
    def test_split(self) -> BatchedDataset:
        """The images that it was tested on."""
        return self.test_data.splits["test"]

    def weights(self) -> dict[str, Tensor]:
        """The best weights of the run's network, {name: tensor}."""
        state = load_checkpoint(self.checkpoint("best"))["state_dict"]
        prefix = "net."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    @cached_property
    def net(self) -> MultiHeadNet:
        """The run's network with its best weights, in evaluation mode. It needs no data set."""
        self._check_trusted("net")
        net = build_net(self.config, self.task.image_shape, self.task.heads)
        with user_errors(str(self.checkpoint("best"))):
            net.load_state_dict(self.weights())
        return net.eval()

    @cached_property
    def ood_detector(self) -> OODDetector | None:
        """Says how unlike the training images an image is; None for a run that kept nothing of them."""
        path = checkpoint_path(self.path, OOD)
        if not path.is_file():
            return None
        with user_errors(str(path)):
            return OODDetector.from_state(load_checkpoint(path)["state_dict"])

    def _check_trusted(self, group: str) -> None:
        if not self.trusted:
            check_trusted(self.config[group], self.path / "config.yaml")

    # --- What it says, and why: `images` are files, folders and patterns, PIL images, arrays, tensors, one or many,
    # of any size and mode (see `data.outside`), or what `examples` gives.

    def inputs(self, images: Any) -> Inputs:
        """Images from outside as the run's data set has them, with notes on what was done to each. Raises `UserError`
        where one cannot be read."""
        if isinstance(images, Inputs):
            return images
        return from_outside(images, self.task.image_shape, self.task.expects)

    def examples(self, count: int = 6) -> Inputs:
        """`count` test images that differ most in their classes, with their true classes; the first is the mistake
        that the network is surest of, where it makes one."""
        return from_split(self.test_split, pick(self.net, self.task.heads, self.test_split, count))

    def predict(self, images: Any) -> Prediction:
        """What the network says to images: every head's probabilities, and how unlike the training images each is."""
        from cnnlab.prediction import predict

        return predict(self.net, self.task.heads, self.inputs(images), self.ood_detector)

    def attribute(
        self,
        images: Any,
        head: str | None = None,
        method: str | Method = "grad_cam",
        target: str | int | Tensor = "predicted",
        **settings: Any,
    ) -> Attribution:
        """Where in images the evidence of a head for a class lies.

        `method` is a name in `conf/method/`, with its `settings`, or a function (net, images, targets) -> maps.
        `target` is "predicted", "true" (for images of the test split), the name of a class, its number, or numbers
        int64 (N,).
        """
        from cnnlab.explain.attribution import attribute

        asked, inputs = self.head(head), self.inputs(images)
        if target == "true" and isinstance(target, str):
            if inputs.truth is None:
                raise UserError("target='true': the true class of an image from outside is not known")
            target = inputs.truth[asked.name]
        elif isinstance(target, str) and target != "predicted":
            number = asked.number(target)
            if number is None:
                hint = did_you_mean(target, ["predicted", "true", *asked.classes])
                raise UserError(f"there is no target '{target}'{hint}")
            target = number
        name, function = named_method(method, **settings)
        with user_errors(f"method.{name}"):
            bound = self.bind_baselines(function)
            return attribute(self.net, inputs.images, target, bound, asked.name, asked.classes, name)

    @cached_property
    def references(self) -> Tensor:
        """Training images drawn at random, float32 (R, C, H, W), for methods that compare an image with others."""
        split = self.datamodule("fit").splits["train"]
        return split.inputs(sample_indices(len(split), min(REFERENCES, len(split))))

    def bind_baselines(self, method: Method) -> Method:
        """The attribution method, given the run's `references` where it takes some and has none."""
        asks = inspect.signature(method).parameters.get("references")
        return method if asks is None or asks.default is not None else partial(method, references=self.references)  # type: ignore[call-arg]

    def activations(self, images: Any, layer: str) -> Activations:
        """What each channel of a layer answers to images; which never answer is judged on 500 random test images."""
        from cnnlab.explain.activations import activations

        inputs, count = self.inputs(images), min(SAMPLE, len(self.test_split))
        sample = self.test_split.inputs(sample_indices(len(self.test_split), count))
        return activations(self.net, [layer], inputs.images, sample, inputs.names)[0]

    def maximise(self, name: str, channels: Sequence[int] | None = None, **settings: Any) -> Maximization:
        """The inputs that maximise the classes of a head, or channels of a layer (the first 64 where none are named),
        by gradient ascent; `settings` are those of `AscentConfig`."""
        from cnnlab.explain.activation_maximization import AscentConfig, maximize_channels, maximize_classes

        with user_errors("maximise"):
            ascent = AscentConfig(**settings)
        shape, heads = self.task.image_shape, {head.name: head for head in self.task.heads}
        if name in heads:
            return maximize_classes(self.net, heads[name], shape, ascent)
        numbers = None if channels is None else torch.tensor(list(channels), dtype=torch.int64)
        return maximize_channels(self.net, name, numbers, shape, ascent)

    def score(self, methods: Any = ("grad_cam",), images: int = 1000) -> Scores:
        """How right heatmaps are, on `images` test images: against the true pixels where the data set has them, else by
        insertion and deletion. `methods` are names, functions, or {name: function}."""
        from cnnlab.explain.evaluation_report import score

        return score(self, named_methods(methods), images)

    def layers(self) -> list[str]:
        """The names of its layers, in the order of the network."""
        return list(leaf_modules(self.net))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


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


def finished_runs(outputs: Path | str = "outputs") -> Iterator[Run]:
    """Yield the finished runs below `outputs`, the newest first, without those for debugging, those tagged "research"
    and those that are broken."""
    files = sorted(Path(outputs).rglob("summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with suppress(UserError):
            run = Run(file.parent)
            if run.config.trainer.get("overfit_batches"):
                continue
            debug, tags = (run.config.get("options") or {}).get("debug"), run.config.get("tags") or ()
            if run.finished and not debug and "research" not in tags:
                yield run


def newest(outputs: Path | str = "outputs") -> Run:
    """Return the run below `outputs` that finished last (see `finished_runs`). Raises `UserError` if there is none."""
    for run in finished_runs(outputs):
        return run
    raise UserError(f"there is no finished run in {outputs}/: train one (python -m cnnlab.train) or set run=<folder>")


def open_run(path: str | None) -> Run:
    """Return the run in the folder `path`, or, where it is None, the newest one in `outputs/`, which is then named."""
    if path:
        return Run(path)
    run = newest()
    echo(f"run  {run.path}")
    return run
