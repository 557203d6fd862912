"""How a run begins: in a folder of its own, from another run's network, or where it stood before."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnnlab.callbacks.checkpoint import last_valid_checkpoint
from cnnlab.cli import named_config
from cnnlab.errors import UserError
from cnnlab.log import is_main_process, say
from cnnlab.runs import Run
from cnnlab.trust import check_trusted


@dataclass(frozen=True)
class RunPlan:
    """The configuration and folder of a run, the checkpoint it goes on from, and the run whose weights it
    begins with; or that it is `finished`."""

    config: DictConfig
    folder: Path
    ckpt_path: Path | None = None
    init_from: Run | None = None
    finished: bool = False


def plan_run(cfg: DictConfig) -> RunPlan:
    """Where the run that `cfg` asks for begins: in the folder that Hydra made for it, or that of `resume`.

    Raises `UserError` for what does not fit together.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.resume is not None:
        run = Run(str(cfg.resume))
        check_trusted(run.config, run.path / "config.yaml")
        return _going_on(run, _resumed(run, cfg))
    init_from = Run(str(cfg.init_from)) if cfg.init_from is not None else None
    config = named_config(_based(cfg, init_from))
    if cfg.skip_finished and (folder / "config.yaml").is_file():
        run = Run(folder)
        if run.config != OmegaConf.create(OmegaConf.to_container(config, resolve=True)):
            elsewhere = "choose another folder: hydra.sweep.dir=<folder>, of a benchmark out=<folder>"
            raise UserError(f"{folder} holds another run than this; {elsewhere}")
        return RunPlan(config, folder, finished=True) if run.finished else _going_on(run, config)
    if is_main_process() and not cfg.skip_finished:
        reserve_run_dir(folder)
    return RunPlan(config, folder, init_from=init_from)


def _going_on(run: Run, config: DictConfig) -> RunPlan:
    ckpt_path = _where_to_go_on(run)
    again = ckpt_path is None and config.get("init_from") is not None
    return RunPlan(config, run.path, ckpt_path, Run(config.init_from) if again else None)


def _based(cfg: DictConfig, init_from: Run | None) -> DictConfig:
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process trains in `folder`: the kernel gives the lock back when this one dies. What was
    reserved and not used goes away. Raises `UserError` where another one does."""
    if not is_main_process():
        yield
        return
    with (folder / "log.txt").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it, or end it") from None
        try:
            yield
        finally:
            if [path.name for path in folder.glob("*")] == ["log.txt"] and not (folder / "log.txt").stat().st_size:
                (folder / "log.txt").unlink()


def _where_to_go_on(run: Run) -> Path | None:
    """The newest checkpoint of a run that can be read; None, so the beginning, where there is none yet.

    Raises `UserError` where there are checkpoints and none can be read.
    """
    path, broken = last_valid_checkpoint(run.path)
    if broken and path is None:
        raise UserError(f"{broken[0]} is broken and there is none before it; train anew")
    if is_main_process():
        for name in broken:
            say(f"{name} is broken; going on from {path}")
        if path is None:
            say(f"{run.path} stopped before its first checkpoint; it begins again")
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
