"""Build the objects of a configuration: data module, network, LightningModule, trainer."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf

from cnnlab.data.datamodule import ImageDataModule
from cnnlab.models.heads import Head
from cnnlab.models.layers import set_bn_momentum
from cnnlab.models.networks import MultiHeadNet
from cnnlab.training.checkpoint import VerifiedCheckpointIO
from cnnlab.training.classifier import Classifier
from cnnlab.utils import hardware
from cnnlab.utils.checkpoints import checkpoint_path
from cnnlab.utils.cli import as_list
from cnnlab.utils.errors import UserError, did_you_mean, user_errors

EXTRAS = ("tensorboard", "mlflow", "wandb")  # of pyproject.toml, one per logger
# Launchers of several machines set one of these.
LAUNCHED = {"TORCHELASTIC_RUN_ID", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS"}


def build(group: str, config: Any, **more: Any) -> Any:
    """Instantiate a configuration with a `_target_`, with `more` arguments. Raises `UserError` for a bad value."""
    with user_errors(group):
        return instantiate(config, _partial_=True, _convert_="all")(**more)


def build_datamodule(config: DictConfig, stage: str | None = None) -> ImageDataModule:
    """Return the data module with the splits of a stage ("fit", "test") or all; downloads missing files."""
    datamodule: ImageDataModule = build("data", config.data)
    with user_errors("data"):
        datamodule.prepare_data()
        datamodule.setup(stage)
    return datamodule


def build_net(config: DictConfig, image_shape: Sequence[int], heads: Sequence[Head]) -> MultiHeadNet:
    """Return the untrained network for images (C, H, W) = `image_shape`."""
    net: MultiHeadNet = build("net", config.net, image_shape=tuple(image_shape), heads=tuple(heads))
    with user_errors("net"):
        set_bn_momentum(net, config.bn_momentum)
    return net.to(memory_format=torch.channels_last)  # faster on a CPU


def build_classifier(config: DictConfig, datamodule: ImageDataModule) -> Classifier:
    """Return the LightningModule. Raises `UserError` for a bad value, also of the optimizer and the scheduler."""
    with user_errors("optimizer or lr_scheduler"):
        optimizer = instantiate(config.optimizer, _convert_="all")
        lr_scheduler = instantiate(config.lr_scheduler, _convert_="all")
    classifier = Classifier(
        net=build_net(config, datamodule.image_shape, datamodule.heads),
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        weighting=build("weighting", config.weighting, heads=datamodule.heads),
        augment=build("augment", config.augment),
        l2=config.l2,
        train_heads=as_list(config.train_heads),
        seed=config.seed,
    )
    with user_errors("optimizer or lr_scheduler"):  # now, not when the training begins
        made = optimizer(classifier.trained_parameters())
        if classifier.lr_scheduler.get("scheduler") is not None:
            classifier.scheduler_config(made, total_steps=1)
    return classifier


def build_trainer(config: DictConfig, folder: Path) -> L.Trainer:
    """Return Lightning's trainer with the configured callbacks and loggers. What they write goes into `folder` unless
    they name a place. Raises `UserError` for a bad value."""
    callbacks = []
    bar = bool(config.trainer.get("enable_progress_bar", True)) and sys.stdout.isatty()
    for name, node in (config.get("callbacks") or {}).items():
        callback = build(f"callbacks.{name}", node)
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(checkpoint_path(folder, "best").parent)
        if bar or not isinstance(callback, ProgressBar):
            callbacks.append(callback)
    loggers = []
    for name, node in (config.get("logger") or {}).items():
        place = {"save_dir": str(folder)} if "save_dir" in node and node.save_dir is None else {}
        try:
            loggers.append(build(f"logger.{name}", OmegaConf.merge(node, place)))
        except UserError as error:
            if name in EXTRAS and isinstance(error.__cause__, ImportError):
                raise UserError(f"logger={name} needs more packages: pip install 'cnnlab[{name}]'") from error
            raise
    _check_trainer(config.trainer)
    settings = {
        "precision": hardware.precision(
            str(config.trainer.get("precision", "auto")), str(config.trainer.get("accelerator", "auto"))
        ),
        "enable_progress_bar": bar,
        "default_root_dir": str(folder),
    }
    return build(  # type: ignore[no-any-return]
        "trainer",
        {**config.trainer, **settings},
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[VerifiedCheckpointIO()],
    )


def _check_trainer(settings: DictConfig) -> None:
    """Raise `UserError` for unknown arguments, and for values that Lightning accepts and fails on later."""
    known = set(inspect.signature(L.Trainer).parameters) - {"plugins", "default_root_dir", "callbacks", "logger"}
    profiler, fast, epochs = settings.get("profiler"), settings.get("fast_dev_run", False), settings.max_epochs
    if not (profiler is None or isinstance(profiler, str | DictConfig)):
        raise UserError(f"trainer.profiler={profiler}: choose one of simple, advanced, pytorch")
    if not isinstance(fast, int) or fast < 0:
        raise UserError(f"trainer.fast_dev_run={fast} is not true, false or a number of batches")
    for ours in ("plugins", "default_root_dir", "callbacks", "logger"):
        if ours in settings:
            raise UserError(f"trainer.{ours} is the run's own; callbacks and loggers are groups of their own")
    for name in map(str, settings):
        if name not in known and name != "_target_":
            raise UserError(f"there is no setting 'trainer.{name}'{did_you_mean(name, known)}")
    for name in ("limit_train_batches", "limit_test_batches"):
        value = settings.get(name)
        if value is not None and not isinstance(value, str) and value == 0:
            raise UserError(f"trainer.{name}=0: a run trains and is tested; it must be above 0")
    nodes = settings.get("num_nodes", 1)
    if isinstance(nodes, int) and nodes > 1 and not LAUNCHED & os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={nodes} would wait for the other machines: start the same command on each with "
            "torchrun, as docs/reliability.md says"
        )
    for name, default in (("max_epochs", None), ("max_steps", -1), ("accumulate_grad_batches", 1)):
        value = settings.get(name, default)
        if value != default and (type(value) is not int or value < 1):
            raise UserError(f"trainer.{name}={value} is not a whole number from 1 up")
    if epochs is None and settings.get("max_steps", -1) == -1 and settings.get("max_time") is None:
        raise UserError("trainer.max_epochs=null has no end: set trainer.max_steps or trainer.max_time")
