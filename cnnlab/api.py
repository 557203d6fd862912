"""The Python API: the commands as functions and methods. `import cnnlab` offers these names."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn

from cnnlab.data.datamodule import sample_indices
from cnnlab.interpret.attribution import Attribution, Method, bind_baselines
from cnnlab.interpret.attribution import attribute as attribute_images
from cnnlab.interpret.audit import AuditResult
from cnnlab.interpret.audit import audit as audit_network
from cnnlab.interpret.inputs import Inputs, from_split, pick, read_inputs, target_classes
from cnnlab.interpret.network import leaf_modules
from cnnlab.interpret.ood import OODDetector, load_ood_detector
from cnnlab.interpret.prediction import Prediction, predict
from cnnlab.interpret.registry import named_method, named_methods
from cnnlab.models.heads import Head
from cnnlab.reporting.audit import audit_run_folder
from cnnlab.run import RunFolder, newest_run
from cnnlab.utils import console
from cnnlab.utils.cli import compose_config, with_experiment_of_data
from cnnlab.utils.errors import UserError, did_you_mean, user_errors

if TYPE_CHECKING:
    from cnnlab.interpret.activations import Activations
    from cnnlab.interpret.feature_visualization import FeatureVisualization

DEFAULT_METHODS = ("grad_cam", "hires_cam", "guided_grad_cam", "integrated_gradients", "saliency")

__all__ = ["Run", "attribute", "audit", "load", "newest", "train"]


class Run(RunFolder):
    """A trained run, and what one can ask it.

    `images` are files, folders and patterns, PIL images, arrays, tensors, one or many, of any size and mode (see
    `data.image_io`), or what `examples` returns. Raises `UserError` for an unreadable image.
    """

    def inputs(self, images: Any) -> Inputs:
        """Convert images to the form the network was trained on, with notes on each step."""
        return read_inputs(images, self.image_shape, self.input_type)

    def examples(self, count: int = 6) -> Inputs:
        """Return `count` varied test images with their true classes. The first is the mistake that the network is most
        confident about, if it makes one."""
        return from_split(self.test_split, pick(self.net, self.heads, self.test_split, count))

    @cached_property
    def ood_detector(self) -> OODDetector | None:
        """Tells how unlike the training images an image is; None where the run kept nothing of them."""
        return load_ood_detector(self.path)

    def predict(self, images: Any) -> Prediction:
        """Return every head's probabilities, and how unlike the training images each image is."""
        return predict(self.net, self.heads, self.inputs(images), self.ood_detector)

    def attribute(
        self,
        images: Any,
        head: str | None = None,
        method: str | Method = "grad_cam",
        target: str | int | Tensor = "predicted",
        **settings: Any,
    ) -> Attribution:
        """Return the evidence for a class of a head in images.

        Args:
            images: See the class.
            head: The name of a head; the only head needs none.
            method: A name in `conf/method/`, with its `settings`, or a function (net, images, targets) -> maps.
            target: "predicted", "true" (for test images), the name of a class, its number, or numbers int64 (N,).
        """
        asked, inputs = self.head(head), self.inputs(images)
        if isinstance(target, str) and target != "predicted":
            classes = target_classes(asked, target, inputs)
            if classes is None:
                hint = did_you_mean(target, ["predicted", "true", *asked.classes])
                raise UserError(f"there is no target '{target}'{hint}")
            target = classes
        name, function = named_method(method, **settings)
        with user_errors(f"method.{name}"):
            bound = bind_baselines(function, lambda: self.baseline_images)
            return attribute_images(self.net, inputs.images, target, bound, asked.name, asked.classes, name)

    def activations(self, images: Any, layer: str) -> Activations:
        """Return the activations of a layer. Dead channels are judged on 500 random test images."""
        from cnnlab.interpret.activations import SAMPLE, activations  # of Captum

        inputs, count = self.inputs(images), min(SAMPLE, len(self.test_split))
        sample = self.test_split.inputs(sample_indices(len(self.test_split), count))
        return activations(self.net, [layer], inputs.images, sample, inputs.names)[0]

    def visualize_features(
        self, name: str, channels: Sequence[int] | None = None, **settings: Any
    ) -> FeatureVisualization:
        """Return the images that excite the classes of a head, or channels of a layer (the first 64 by default), most.
        For `settings` see `AscentConfig`."""
        from cnnlab.interpret.feature_visualization import AscentConfig, visualize_channels, visualize_classes

        with user_errors("visualize_features"):
            ascent = AscentConfig(**settings)
        heads: dict[str, Head] = {head.name: head for head in self.heads}
        if channels is not None and (name in heads or not all(isinstance(channel, int) for channel in channels)):
            raise UserError("channels are whole numbers, of a layer; of a head all classes are shown")
        if name in heads:
            return visualize_classes(self.net, heads[name], self.image_shape, ascent)
        numbers = None if channels is None else torch.tensor(channels, dtype=torch.int64)
        return visualize_channels(self.net, name, numbers, self.image_shape, ascent)

    def audit(self, methods: Any = DEFAULT_METHODS, images: int | None = None) -> AuditResult:
        """Return a verdict on each method, from `images` random test images; None: 100, or all of a smaller test split.
        `methods` are names, functions, or {name: function}. The right pixels of lines are known exactly."""
        with console.working() as progress:
            return audit_run_folder(self, named_methods(methods), images, progress)

    def layers(self) -> list[str]:
        """Return the names of the layers, in the order of the network."""
        return list(leaf_modules(self.net))


def train(
    experiment: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    folder: Path | str | None = None,
    config_dir: Path | str | None = None,
) -> Run:
    """Train and test a network, like `python -m cnnlab.train experiment=<experiment> seed=<seed> <overrides>`.

        run = cnnlab.train("multihead", seed=1, overrides=["net.dropout=0.25", "trainer.max_epochs=1"])

    Args:
        experiment: A name in `conf/experiment/`. None: "multihead", or the one that fits `data=` in `overrides`.
        seed: The seed of data, weights, order and dropout.
        overrides: The same `name=value` strings as on the command line. `["resume=<run folder>"]`, with a higher
            `trainer.max_epochs` or none, goes on with a run; experiment and seed are then its own.
        folder: The run folder; by default a new one in `outputs/`.
        config_dir: A folder of your own configuration files (`data/mine.yaml`, ...).

    Raises:
        UserError: For errors that the user can fix. No file is overwritten.
    """
    from cnnlab.launch import plan_run
    from cnnlab.pipeline import train as train_config
    from cnnlab.training.callbacks import Interrupted

    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise UserError(
            f"overrides={overrides!r}: give a list of words, like ['net.dropout=0.25', 'trainer.max_epochs=1']"
        )
    resumed = any(word.startswith("resume=") for word in overrides)
    chosen = with_experiment_of_data(overrides) if experiment is None else [f"experiment={experiment}", *overrides]
    words = [*overrides] if resumed else [f"seed={seed}", *chosen]
    with compose_config("train", words, folder, config_dir) as cfg:
        try:
            planned = plan_run(cfg)
            if not isinstance(planned, RunFolder):
                train_config(planned, several_processes=False)
        except Interrupted as interrupted:
            if interrupted.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from None
            raise
        return Run(str(cfg.resume) if cfg.resume else HydraConfig.get().runtime.output_dir, trusted=True)


def load(path: Path | str) -> Run:
    """Return the run in the folder `path`. Raises `UserError` if there is none."""
    return Run(path)


def newest(outputs: Path | str = "outputs") -> Run:
    """Return the run below `outputs` that finished last. Raises `UserError` if there is none."""
    return Run(newest_run(outputs))


def attribute(
    net: nn.Module,
    images: Tensor,
    target: Tensor | int | str = "predicted",
    method: str | Method = "grad_cam",
    head: str | int | None = None,
    **settings: Any,
) -> Attribution:
    """Return the evidence for a class in images, for any PyTorch network.

        result = cnnlab.attribute(net, images, head=1, method="grad_cam")
        result.maps       # float32 (N, H, W)
        result.plot()     # a matplotlib figure

    Args:
        net: Answers class scores (N, classes), or a dict or tuple of them, one per head. It is not changed.
        images: Float (N, C, H, W).
        target: "predicted", the number of a class, or numbers int64 (N,).
        method: A name in `conf/method/`, with its `settings` (`target_layer="conv2"` for Grad-CAM), or a function (net,
            images, targets) -> maps (N, H, W), where `net` returns the scores of the one head.
        head: The key or index of the head.
    """
    if not isinstance(net, nn.Module) or not isinstance(images, Tensor) or not images.is_floating_point():
        raise UserError("cnnlab.attribute takes an nn.Module and a float tensor of images (N, C, H, W)")
    name, function = named_method(method, **settings)
    with user_errors(f"method.{name}"):
        return attribute_images(net, images, target, function, head, name=name)


def audit(
    net: nn.Module,
    images: Tensor,
    head: str | int | Sequence[str | int] | None = None,
    methods: Any = DEFAULT_METHODS,
    masks: Tensor | Mapping[Any, Tensor] | None = None,
    counterfactuals: Tensor | Mapping[Any, Tensor] | None = None,
) -> AuditResult:
    """Return a verdict on each attribution method for any PyTorch network: "use", "with care" or "do not use".

        result = cnnlab.audit(net, images, methods=["grad_cam", "saliency"])
        result              # a verdict and a reason per method
        result.to_pandas()  # every check: method, head, check, value, low, high, passed, verdict

    Args:
        net: Answers class scores (N, classes), or a dict or tuple of them, one per head. It is not changed.
        images: Float (N, C, H, W), at least eight; 100 small or 32 large ones give clear verdicts.
        head: The key or index of one head, or several; None for all.
        methods: Names, functions (net, images, targets) -> maps (N, H, W), or {name: function}.
        masks: The right pixels bool (N, H, W), or {head: masks}, if you know them.
        counterfactuals: Images (N, C, H, W) of another class that differ only where they must, or {head: images}.
    """
    if not isinstance(net, nn.Module) or not isinstance(images, Tensor) or not images.is_floating_point():
        raise UserError("cnnlab.audit takes an nn.Module and a float tensor of images (N, C, H, W)")
    heads = [head] if isinstance(head, str | int) else head
    with user_errors("audit"), console.working() as progress:
        return audit_network(net, images, named_methods(methods), heads, masks, counterfactuals, progress)
