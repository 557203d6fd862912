"""The start of a run: a new folder, another run's network, or the last checkpoint. Reads Hydra's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from cnnlab.pipeline import train
from cnnlab.run import RunFolder
from cnnlab.training.callbacks import kept_accuracy
from cnnlab.utils import hardware
from cnnlab.utils.checkpoints import last_valid_checkpoint, load_checkpoint
from cnnlab.utils.cli import config_with_choices
from cnnlab.utils.console import echo, is_main_process
from cnnlab.utils.errors import UserError
from cnnlab.utils.trust import check_trusted


def train_command(cfg: DictConfig) -> float:
    """Train as configured on the command line. Finished jobs of a sweep are skipped."""
    planned, hydra = plan_run(cfg), HydraConfig.get()
    if isinstance(planned, RunFolder):
        return kept_accuracy(planned.summary)
    sweep = hydra.mode == RunMode.MULTIRUN
    if sweep:
        words = [word for word in hydra.overrides.task if not word.startswith("experiment=")]
        echo(f"\njob {hydra.job.num}: {' '.join(words)}")
    return train(planned, several_processes=not sweep)


def plan_run(cfg: DictConfig) -> DictConfig | RunFolder:
    """Return the configuration for `pipeline.train`: with the run folder (`paths.output_dir`), the checkpoint to go on
    from (`ckpt_path`) and the number of threads (`job_threads`). With `skip_finished`, return a finished run instead.
    Raises `UserError` for settings that do not fit together."""
    folder = Path(cfg.paths.output_dir)
    if cfg.resume is not None:
        run = RunFolder(_absolute(cfg.resume))
        check_trusted(run.config, run.path / "config.yaml")
        return _runtime(_resumed(run, cfg), run.path, _last_checkpoint(run))
    init_from = RunFolder(_absolute(cfg.init_from)) if cfg.init_from is not None else None
    config = config_with_choices(with_base_network(cfg, init_from))
    root = config.data.get("root")
    if isinstance(root, str) and not root.startswith("~"):
        config.data.root = to_absolute_path(root)  # the run is opened from anywhere
    if cfg.skip_finished and (folder / "config.yaml").is_file():
        run = RunFolder(folder)
        if run.config != OmegaConf.create(OmegaConf.to_container(config, resolve=True)):
            elsewhere = "choose another folder: hydra.sweep.dir=<folder>, of a benchmark out=<folder>"
            raise UserError(f"{folder} holds another run than this; {elsewhere}")
        return run if run.finished else _runtime(config, run.path, _last_checkpoint(run))
    if is_main_process() and not cfg.skip_finished:
        reserve_run_dir(folder)
    return _runtime(config, folder, None)


def _absolute(folder: Any) -> str:
    """Return a path seen from where the command was started, also with `hydra.job.chdir`."""
    return to_absolute_path(str(Path(str(folder)).expanduser()))


def _runtime(config: DictConfig, folder: Path, ckpt_path: Path | None) -> DictConfig:
    """Return `config` with the settings of this start of the run."""
    container = OmegaConf.to_container(config, resolve=True)
    threads = hardware.threads_of_job(config.threads, HydraConfig.get().launcher)
    start = {"job_threads": threads, "ckpt_path": None if ckpt_path is None else str(ckpt_path)}
    return OmegaConf.create({**container, **start, "paths": {"output_dir": str(folder)}})  # type: ignore[dict-item]


def with_base_network(cfg: DictConfig, init_from: RunFolder | None) -> DictConfig:
    """Return `cfg` with the network of the run that it starts from."""
    if init_from is None:
        if cfg.train_heads:
            raise UserError(f"train_heads={cfg.train_heads}: set init_from=<run>, whose other layers are trained")
        return cfg
    check_trusted(init_from.config.net, init_from.path / "config.yaml")
    for override in HydraConfig.get().overrides.task:
        if override.lstrip("+~").startswith(("net=", "net.")):
            raise UserError(f"init_from takes the network from the run: drop {override}")
    based = cfg.copy()
    based.net, based.init_from = init_from.config.net, str(init_from.path)
    return based


def reserve_run_dir(folder: Path) -> None:
    """Make the folder ours: of several runs that want it at once, the one that creates its `log.txt` gets it. Raises
    `UserError` where it holds anything."""
    taken = f"{folder} is not empty; choose another folder (hydra.run.dir=<folder>), or go on with resume={folder}"
    if any(folder.iterdir()):
        raise UserError(taken)
    try:
        (folder / "log.txt").touch(exist_ok=False)
    except FileExistsError:
        raise UserError(taken) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}; choose another folder (hydra.run.dir=<folder>)") from error


def _last_checkpoint(run: RunFolder) -> Path | None:
    """Return the newest readable checkpoint, None before the first. Raises `UserError` where all are broken."""
    path, broken = last_valid_checkpoint(run.path)
    if broken and path is None:
        raise UserError(f"{broken[0]} is broken and there is none before it; train anew")
    if is_main_process():
        for name in broken:
            echo(f"{name} is broken; going on from {path}")
        if path is None:
            echo(f"{run.path} stopped before its first checkpoint; it begins again")
    return path


def _resumed(run: RunFolder, cfg: DictConfig) -> DictConfig:
    """Return the run's own configuration; only `trainer.max_epochs` may be raised."""
    config, raised = run.config.copy(), False
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        raised |= key == "trainer.max_epochs"
        if key not in ("resume", "trainer.max_epochs") and (key, value) != ("experiment", run.config.experiment):
            raise UserError(
                f"resume takes everything from the run, and only trainer.max_epochs may be raised: drop {override}"
            )
    if raised:
        epochs, before = cfg.trainer.max_epochs, config.trainer.max_epochs
        if before is None:
            raise UserError("the run has no trainer.max_epochs that could be raised; drop trainer.max_epochs")
        if type(epochs) is not int or epochs < before:
            raise UserError(
                f"trainer.max_epochs={epochs}: the run has {before}; it can only be raised to a whole number"
            )
        config.trainer.max_epochs = epochs
    most = config.trainer.get("max_steps", -1)
    if run.finished and most != -1 and load_checkpoint(run.checkpoint("last"))["global_step"] >= most:
        raise UserError(f"{run.path} is finished: it ends at trainer.max_steps={most}; train anew")
    if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
        raise UserError(f"{run.path} is finished; raise trainer.max_epochs to train it longer")
    return config
