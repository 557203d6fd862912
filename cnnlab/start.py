"""How a run begins: in a folder of its own, from another run's network, or where it stood before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnnlab import UserError
from cnnlab.checkpoints import newest_whole
from cnnlab.runs import Run


@dataclass(frozen=True)
class Start:
    """The configuration and folder of a run, the checkpoint it goes on from, and the run whose weights it
    begins with; or that it is `done`."""

    cfg: DictConfig
    folder: Path
    ckpt: Path | None = None
    base: Run | None = None
    done: bool = False

    @property
    def words(self) -> list[str]:
        """What another process says to take part in this run."""
        said = list(HydraConfig.get().overrides.task)
        resumed = any(word.startswith("resume=") for word in said)
        return said if resumed or not (self.folder / "config.yaml").is_file() else [f"resume={self.folder}"]


def begin(cfg: DictConfig, folder: Path) -> Start:
    """Where the run that `cfg` asks for begins: `folder` is the new one that Hydra made for it.

    Raises `UserError` for what does not fit together.
    """
    if cfg.resume is not None:
        run = Run(str(cfg.resume))
        return _going_on(run, _resumed(run, cfg))
    base = Run(str(cfg.from_run)) if cfg.from_run is not None else None
    config = _named(_based(cfg, base))
    if cfg.skip_finished and (folder / "config.yaml").is_file():
        run = Run(folder)
        if run.config != OmegaConf.create(OmegaConf.to_container(config, resolve=True)):
            raise UserError(f"{folder} holds another run than this; choose another hydra.sweep.dir")
        return Start(config, folder, done=True) if run.finished else _going_on(run, config)
    if cfg.skip_finished:  # a job that was killed before it had written anything
        drop_if_unused(folder)
        folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    return Start(config, folder, base=base)


def _going_on(run: Run, config: DictConfig) -> Start:
    ckpt = _where_to_go_on(run)
    again = ckpt is None and config.get("from_run") is not None
    return Start(config, run.path, ckpt, Run(config.from_run) if again else None)


def _named(cfg: DictConfig) -> DictConfig:
    """`cfg` with the names of the chosen experiment and options in front."""
    choices = HydraConfig.get().runtime.choices
    options = {group: option for group, option in choices.items() if "/" not in group}
    settings = {key: value for key, value in cfg.items() if key != "skip_finished"}
    return OmegaConf.create({"experiment": options.pop("experiment"), "options": options, **settings})


def _based(cfg: DictConfig, base: Run | None) -> DictConfig:
    """`cfg` with the network of the run it begins with."""
    if base is None:
        if cfg.train_heads:
            raise UserError(
                f"train_heads={cfg.train_heads}: the rest must have been trained before; set from_run=<run>"
            )
        return cfg
    for override in HydraConfig.get().overrides.task:
        if override.lstrip("+~").startswith(("net=", "net.")):
            raise UserError(f"from_run takes the network from the run: drop {override}")
    based = cfg.copy()
    based.net, based.from_run = base.config.net, str(base.path)
    return based


def claim(folder: Path) -> None:
    """Make the folder ours: of several runs that want it at the same moment one gets it, the one that makes
    its `log.txt`. Nothing in it is ever written over. Raises `UserError` where it is another's."""
    taken = f"{folder} is not empty; choose another hydra.run.dir, or go on with resume={folder}"
    if any(folder.iterdir()):
        raise UserError(taken)
    try:
        (folder / "log.txt").touch(exist_ok=False)
    except FileExistsError:
        raise UserError(taken) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}; set hydra.run.dir=<folder>") from error


def drop_if_unused(folder: Path) -> None:
    """Leave no folder behind in which there is nothing but an empty log."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    if all(path.name == "log.txt" and path.stat().st_size == 0 for path in found):
        for path in found:
            path.unlink()
        if folder.is_dir():
            folder.rmdir()


def _where_to_go_on(run: Run) -> Path | None:
    """The newest checkpoint of a run that can be read; None, so the beginning, where there is none yet.

    Raises `UserError` where there are checkpoints and none can be read.
    """
    path, broken = newest_whole(run.path / "checkpoints")
    if broken and path is None:
        raise UserError(f"{broken[0]} is broken and there is none before it; train anew")
    for name in broken:
        print(f"{name} is broken; going on from {path}")
    if path is None:
        print(f"{run.path} stopped before its first checkpoint; it begins again")
    return path


def _resumed(run: Run, cfg: DictConfig) -> DictConfig:
    """The run's own configuration; of the command line's only `trainer.max_epochs` counts, to raise it."""
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in ("resume", "trainer.max_epochs") and (key, value) != (
            "experiment",
            run.config.experiment,
        ):
            raise UserError(
                "resume takes everything from the run, and only trainer.max_epochs may be raised: "
                f"drop {override}"
            )
    config = run.config.copy()
    if any(override.startswith("trainer.max_epochs=") for override in HydraConfig.get().overrides.task):
        if cfg.trainer.max_epochs < config.trainer.max_epochs:
            raise UserError(
                f"the run has trainer.max_epochs={config.trainer.max_epochs}; it can only be raised"
            )
        config.trainer.max_epochs = cfg.trainer.max_epochs
    if run.finished and config.trainer.max_epochs == run.config.trainer.max_epochs:
        raise UserError(f"{run.path} is finished; raise trainer.max_epochs to train it longer")
    return config
