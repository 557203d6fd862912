"""cnnlab from Python: what the commands do, as functions and objects. `import cnnlab` offers what is here."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn

from cnnlab.build import named_method, user_errors
from cnnlab.callbacks.graceful_shutdown import Interrupted
from cnnlab.cli import compose_config
from cnnlab.errors import UserError
from cnnlab.explain.attribution import Attribution, Method
from cnnlab.explain.attribution import attribute as attribute_by
from cnnlab.runs import Run, newest

__all__ = ["Run", "attribute", "load", "newest", "train"]


def train(
    experiment: str = "multihead",
    seed: int = 0,
    overrides: Sequence[str] = (),
    folder: Path | str | None = None,
    config_dir: Path | str | None = None,
) -> Run:
    """Train and test a network, and return its run: `python -m cnnlab.train experiment=<experiment> seed=<seed>
    <overrides>`. It is written to `folder`, or to a new one in `outputs/`; `config_dir` holds configuration files of
    your own (`data/mine.yaml`, ...).

        run = cnnlab.train("multihead", seed=1, overrides=["net.dropout=0.25", "trainer.max_epochs=1"])

    `overrides=["resume=<run folder>"]`, with a higher `trainer.max_epochs` or none, goes on with a run: experiment and
    seed are then its own. Raises `UserError` for what the user can mend; what was there before is never written over.
    """
    from cnnlab.pipeline import train as train_composed
    from cnnlab.run_plan import plan_run

    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise UserError(
            f"overrides={overrides!r}: give a list of words, like ['net.dropout=0.25', 'trainer.max_epochs=1']"
        )
    resumed = any(word.startswith("resume=") for word in overrides)
    words = [*overrides] if resumed else [f"experiment={experiment}", f"seed={seed}", *overrides]
    with compose_config("train", words, folder, config_dir) as cfg:
        try:
            planned = plan_run(cfg)
            if not isinstance(planned, Run):
                train_composed(planned, several_processes=False)
        except Interrupted as interrupted:
            if interrupted.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from None
            raise
        return Run(str(cfg.resume) if cfg.resume else HydraConfig.get().runtime.output_dir, trusted=True)


def load(path: Path | str) -> Run:
    """The run in the folder `path`. Raises `UserError` where it holds none."""
    return Run(path)


def attribute(
    net: nn.Module,
    images: Tensor,
    target: Tensor | int | str = "predicted",
    method: str | Method = "grad_cam",
    head: str | int | None = None,
    **settings: Any,
) -> Attribution:
    """Where in `images` float32 (N, C, H, W) the evidence of any network for a class lies.

    The network answers scores (N, classes), or a dict or a tuple of them, of which `head` is the key or the place.
    `target` is "predicted", the number of a class, or numbers int64 (N,). `method` is a name in `conf/method/`, with
    its `settings` (`layer="conv2"` for Grad-CAM), or a function (net, images, targets) -> maps (N, H, W), where `net`
    gives the scores of the one head. The network is left as it was.

        result = cnnlab.attribute(net, images, head=1, method="grad_cam")
        result.maps       # float32 (N, H, W)
        result.plot()     # a matplotlib figure
    """
    if not isinstance(net, nn.Module) or not isinstance(images, Tensor) or not images.is_floating_point():
        raise UserError("cnnlab.attribute takes an nn.Module and a float tensor of images (N, C, H, W)")
    name, function = named_method(method, **settings)
    with user_errors(f"method.{name}"):
        return attribute_by(net, images, target, function, head, name=name)
