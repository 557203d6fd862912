"""How a run begins: in a folder of its own, from another run's network, or where it stood before."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab import hardware
from cnnlab.callbacks.checkpoint import last_valid_checkpoint
from cnnlab.callbacks.metrics_history import best_accuracy
from cnnlab.cli import config_with_choices
from cnnlab.errors import UserError
from cnnlab.log import echo, is_main_process
from cnnlab.pipeline import train
from cnnlab.runs import Run
from cnnlab.trust import check_trusted


def train_command(cfg: DictConfig) -> float:
    """Train what the command line says; a job of a sweep that is finished already is left alone."""
    planned, hydra = plan_run(cfg), HydraConfig.get()
    if isinstance(planned, Run):
        return best_accuracy(planned.metrics)
    sweep = hydra.mode == RunMode.MULTIRUN
    if sweep:
        words = [word for word in hydra.overrides.task if not word.startswith("experiment=")]
        echo(f"\njob {hydra.job.num}: {' '.join(words)}")
    return train(planned, several_processes=not sweep)


def plan_run(cfg: DictConfig) -> DictConfig | Run:
    """Return the configuration that `pipeline.train` takes for the command line's `cfg`: where the run is written
    (`paths.output_dir`), the checkpoint it goes on from (`ckpt_path`), and its share of the cores (`job_threads`). With
    `skip_finished`, return a run that is finished instead.

    Reads Hydra's state, which `pipeline.train` does not. Raises `UserError` for what does not fit together.
    """
    folder = Path(cfg.paths.output_dir)
    if cfg.resume is not None:
        run = Run(str(cfg.resume))
        check_trusted(run.config, run.path / "config.yaml")
        return _runtime(_resumed(run, cfg), run.path, _where_to_go_on(run))
    init_from = Run(str(cfg.init_from)) if cfg.init_from is not None else None
    config = config_with_choices(with_base_network(cfg, init_from))
    if cfg.skip_finished and (folder / "config.yaml").is_file():
        run = Run(folder)
        if run.config != OmegaConf.create(OmegaConf.to_container(config, resolve=True)):
            elsewhere = "choose another folder: hydra.sweep.dir=<folder>, of a benchmark out=<folder>"
            raise UserError(f"{folder} holds another run than this; {elsewhere}")
        return run if run.finished else _runtime(config, run.path, _where_to_go_on(run))
    if is_main_process() and not cfg.skip_finished:
        reserve_run_dir(folder)
    return _runtime(config, folder, None)


def _runtime(config: DictConfig, folder: Path, ckpt_path: Path | None) -> DictConfig:
    """`config` with what this start of the run alone has."""
    launcher = HydraConfig.get().launcher
    return OmegaConf.create(
        {
            **OmegaConf.to_container(config, resolve=True),  # type: ignore[dict-item]
            "job_threads": hardware.threads_of_job(config.threads, launcher),
            "paths": {"output_dir": str(folder)},
            "ckpt_path": None if ckpt_path is None else str(ckpt_path),
        }
    )


def with_base_network(cfg: DictConfig, init_from: Run | None) -> DictConfig:
    """`cfg` with the network of the run it begins with."""
    if init_from is None:
        if cfg.train_heads:
            raise UserError(
                f"train_heads={cfg.train_heads}: the rest must have been trained before; set init_from=<run>"
            )
        return cfg
    check_trusted(init_from.config.net, init_from.path / "config.yaml")
    for override in HydraConfig.get().overrides.task:
        if override.lstrip("+~").startswith(("net=", "net.")):
            raise UserError(f"init_from takes the network from the run: drop {override}")
    based = cfg.copy()
    based.net, based.init_from = init_from.config.net, str(init_from.path)
    return based


def reserve_run_dir(folder: Path) -> None:
    """Make the folder ours: of several runs that want it at the same moment one gets it, the one that makes
    its `log.txt`. Nothing in it is ever written over. Raises `UserError` where it is another's."""
    taken = f"{folder} is not empty; choose another folder (hydra.run.dir=<folder>), or go on with resume={folder}"
    if any(folder.iterdir()):
        raise UserError(taken)
    try:
        (folder / "log.txt").touch(exist_ok=False)
    except FileExistsError:
        raise UserError(taken) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}; choose another folder (hydra.run.dir=<folder>)") from error


def _where_to_go_on(run: Run) -> Path | None:
    """The newest checkpoint of a run that can be read; None, so the beginning, where there is none yet.

    Raises `UserError` where there are checkpoints and none can be read.
    """
    path, broken = last_valid_checkpoint(run.path)
    if broken and path is None:
        raise UserError(f"{broken[0]} is broken and there is none before it; train anew")
    if is_main_process():
        for name in broken:
            echo(f"{name} is broken; going on from {path}")
        if path is None:
            echo(f"{run.path} stopped before its first checkpoint; it begins again")
    return path


def _resumed(run: Run, cfg: DictConfig) -> DictConfig:
    """The run's own configuration; of the command line's only `trainer.max_epochs` counts, to raise it."""
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in ("resume", "trainer.max_epochs") and (key, value) != ("experiment", run.config.experiment):
            raise UserError(
                f"resume takes everything from the run, and only trainer.max_epochs may be raised: drop {override}"
            )
    config = run.config.copy()
    words = [override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task]
    if "trainer.max_epochs" in words:
        epochs, before = cfg.trainer.max_epochs, config.trainer.max_epochs
        if before is None:
            raise UserError("the run has no trainer.max_epochs that could be raised; drop trainer.max_epochs")
        if type(epochs) is not int or epochs < before:
            raise UserError(
                f"trainer.max_epochs={epochs}: the run has {before}; it can only be raised to a whole number"
            )
        config.trainer.max_epochs = epochs
    if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
        raise UserError(f"{run.path} is finished; raise trainer.max_epochs to train it longer")
    return config
