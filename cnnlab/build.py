"""What a configuration builds: data set, network, classifier, trainer."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf

from cnnlab import hardware
from cnnlab.callbacks.checkpoint import VerifiedCheckpointIO, checkpoint_path, last_valid_checkpoint
from cnnlab.cli import CONF, as_list
from cnnlab.data.datamodule import ImageDataModule
from cnnlab.errors import Diverged, UserError, did_you_mean, raised_by
from cnnlab.models.classifier import Classifier
from cnnlab.models.heads import Head
from cnnlab.models.layers import set_bn_momentum
from cnnlab.models.networks import MultiHeadNet

if TYPE_CHECKING:
    from cnnlab.explain.attribution import Method  # Captum comes with it, which no training needs

EXTRAS = ("tensorboard", "mlflow", "wandb")  # of pyproject.toml, each for the logger of its name
# Whatever starts a training on several machines sets one of these.
LAUNCHED = {"TORCHELASTIC_RUN_ID", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS"}


@contextmanager
def user_errors(group: str) -> Iterator[None]:
    """Within, a value that a constructor does not take is the user's mistake: a `UserError` that names `group`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, AttributeError) as error:  # whose words alone say little
        raise UserError(f"{group}: {type(error).__name__}: {error}") from error
    except (TypeError, ValueError, AssertionError, RuntimeError, OverflowError, ImportError) as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error
    except Exception as error:  # Hydra wraps what it could not find or call
        if type(error).__module__.startswith("hydra.") or "Misconfiguration" in type(error).__name__:
            raise UserError(f"{group}: {' '.join(str(error).split())}") from error
        raise


def as_user_error(error: Exception, folder: Path) -> Exception:
    """The `UserError` that says what can be done about an error of a training in `folder`, or the error itself."""
    if isinstance(error, Diverged):
        path, _ = last_valid_checkpoint(folder)
        kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        return UserError(f"{error}; {kept}; lower optimizer.lr, or try trainer.precision=32-true")
    if not isinstance(error, UserError) and raised_by(error, "lightning"):
        return UserError(f"trainer: {' '.join(str(error).split())}")
    return error


def build(group: str, config: Any, **more: Any) -> Any:
    """What a configuration with a `_target_` builds, with `more` arguments. `UserError` for a bad value."""
    with user_errors(group):
        return instantiate(config, _partial_=True, _convert_="all")(**more)


def build_datamodule(config: DictConfig, stage: str | None = None) -> ImageDataModule:
    """The data set of a run's configuration, fetched, with the splits of a stage ("fit", "test") or all."""
    datamodule: ImageDataModule = build("data", config.data)
    with user_errors("data"):
        datamodule.prepare_data()
        datamodule.setup(stage)
    return datamodule


def build_net(config: DictConfig, image_shape: Sequence[int], heads: Sequence[Head]) -> MultiHeadNet:
    """The untrained network of a run's configuration, for images (C, H, W) = `image_shape`."""
    net: MultiHeadNet = build("net", config.net, image_shape=tuple(image_shape), heads=tuple(heads))
    set_bn_momentum(net, config.bn_momentum)
    # On a CPU the dense layer at every pixel is then a matrix product: Classifier-1 takes 37 ms a step instead of 66.
    return net.to(memory_format=torch.channels_last)


def build_classifier(config: DictConfig, datamodule: ImageDataModule) -> Classifier:
    """Network, loss, optimizer and learning rate of a configuration. Raises `UserError` for a bad value."""
    with user_errors("optimizer or lr_scheduler"):
        optimizer = instantiate(config.optimizer, _convert_="all")
        lr_scheduler = instantiate(config.lr_scheduler, _convert_="all")
    weighting = build("weighting", config.weighting, heads=datamodule.heads)
    augment = build("augment", config.augment)
    classifier = Classifier(
        net=build_net(config, datamodule.image_shape, datamodule.heads),
        heads=datamodule.heads,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        weighting=weighting,
        augment=augment,
        l2=config.l2,
        train_heads=as_list(config.train_heads),
        seed=config.seed,
    )
    with user_errors("optimizer or lr_scheduler"):  # now, not when the training begins
        if classifier.lr_scheduler.get("scheduler") is not None:
            classifier.scheduler_config(optimizer(classifier.trained_parameters()), total_steps=1)
        else:
            optimizer(classifier.trained_parameters())
    return classifier


def build_methods(config: DictConfig) -> dict[str, Method]:
    """{name: attribution method} of the `method` group; a function of the user's own is named by its `_target_`."""
    methods = {}
    for name, node in config.items():
        with user_errors(f"method.{name!s}"):
            methods[str(name)] = instantiate(node, _partial_=True, _convert_="all")
    if not methods:
        raise UserError("method={}: name at least one method, like method=[grad_cam]")
    return methods


def named_method(method: str | Method, **settings: Any) -> tuple[str, Method]:
    """The name of an attribution method and the method itself: of a name that of `conf/method/`, with `settings` in the
    place of its own; a function as it is. Raises `UserError` for what does not exist or does not fit."""
    if isinstance(method, str):
        folder = CONF / "method"
        if not (folder / f"{method}.yaml").is_file():
            raise UserError(f"there is no method '{method}'{did_you_mean(method, [p.stem for p in folder.iterdir()])}")
        name, function = next(iter(build_methods(OmegaConf.load(folder / f"{method}.yaml")).items()))  # type: ignore[arg-type]
    elif not callable(method):
        raise UserError(f"method={method!r} is neither a name nor a function (net, images, targets) -> maps (N, H, W)")
    else:
        name, function = str(getattr(method, "__name__", "method")), method
    with user_errors(f"method.{name}"):
        inspect.signature(function).bind(None, None, None, **settings)
    return name, partial(function, **settings)


def named_methods(methods: Any) -> dict[str, Method]:
    """{name: attribution method} of one or several, each a name or a function, or of {name: function}."""
    if isinstance(methods, Mapping):
        return {name: named_method(method)[1] for name, method in methods.items()}
    several = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
    found = [named_method(method) for method in several]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise UserError(f"methods {', '.join(names)}: two have one name; give {{name: function}}")
    return dict(found)


def _check_trainer(settings: DictConfig) -> None:
    """Refuse what Lightning itself takes and then stumbles over."""
    profiler, fast, epochs = settings.profiler, settings.fast_dev_run, settings.max_epochs
    if not (profiler is None or isinstance(profiler, str | DictConfig)):
        raise UserError(f"trainer.profiler={profiler}: choose one of simple, advanced, pytorch")
    if not isinstance(fast, int) or fast < 0:
        raise UserError(f"trainer.fast_dev_run={fast} is not true, false or a number of batches")
    for ours in ("plugins", "default_root_dir", "callbacks", "logger"):
        if ours in settings:
            raise UserError(f"trainer.{ours} is the run's own; callbacks and loggers are groups of their own")
    for name in ("limit_train_batches", "limit_test_batches"):
        if settings[name] is not None and not isinstance(settings[name], str) and settings[name] == 0:
            raise UserError(f"trainer.{name}=0: a run trains and is tested; it must be above 0")
    if isinstance(settings.num_nodes, int) and settings.num_nodes > 1 and not LAUNCHED & os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={settings.num_nodes} would wait for the other machines: start the same command on each "
            "with torchrun, as docs/reliability.md says"
        )
    for name in ("max_steps", "accumulate_grad_batches"):
        value, lowest = settings[name], -1 if name == "max_steps" else 1
        if type(value) is not int or value < lowest or value == 0:
            raise UserError(f"trainer.{name}={value} is not a whole number from 1 up")
    if epochs is None and settings.max_steps == -1 and settings.max_time is None:
        raise UserError("trainer.max_epochs=null has no end: set trainer.max_steps or trainer.max_time")
    if epochs is not None and (not isinstance(epochs, int) or isinstance(epochs, bool)):
        raise UserError(f"trainer.max_epochs={epochs} is not a whole number")
    if epochs is not None and epochs < 1:
        raise UserError(f"trainer.max_epochs={epochs} must be at least 1")


def build_trainer(config: DictConfig, folder: Path) -> L.Trainer:
    """Lightning's trainer with the callbacks and loggers of a configuration; what they write goes into `folder`
    where their files leave it open. Raises `UserError` for a bad value."""
    callbacks = []
    bar = bool(config.trainer.enable_progress_bar) and sys.stdout.isatty()
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
    return build(  # type: ignore[no-any-return]
        "trainer",
        {
            **config.trainer,
            "precision": hardware.precision(str(config.trainer.precision)),
            "enable_progress_bar": bar,
            "default_root_dir": str(folder),
        },
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[VerifiedCheckpointIO()],
    )
