"""A Hydra command line whose mistakes are answered in one line.

The YAML files are the schema: a setting exists if they name it, and its type is that of the value there.
Nothing here imports torch, so a typo is answered at once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from cnnlab import __version__
from cnnlab.errors import UserError, did_you_mean, raised_by
from cnnlab.help import FLAGS, groups_of, help_text
from cnnlab.log import command_line, echo

# In a wheel `conf` lies in the package, in a checkout beside it.
CONF = next(
    folder / "conf"
    for folder in (Path(__file__).parent, Path(__file__).parent.parent)
    if (folder / "conf" / "train.yaml").is_file()
)

# Mappings whose keys are the user's to name: Hydra itself would ask for a `+` before each.
NAMED_BY_USER = ("weighting.weights.", "where.", "maps.", "networks.", "scenes.")
# Where a `+` may add what the files do not name: other people's constructors, which refuse what they do not know.
OPEN = (*NAMED_BY_USER, "callbacks.", "logger.", "optimizer.", "lr_scheduler.", "method.", "trainer.")
# Settings of which Lightning takes several types.
UNTYPED = (
    *("trainer.devices", "trainer.fast_dev_run", "trainer.precision", "trainer.strategy", "trainer.max_epochs"),
    *("callbacks.", "logger."),
)

OPTIONAL = ("trainer.check_val_every_n_epoch", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps")

MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError)

IN_PYTHON = "python"  # the name of Hydra's job where no command began it
_FULL_ERROR = "HYDRA_FULL_ERROR"


def command(
    config_name: str, task: str, failed: Callable[[DictConfig, Exception], None] | None = None, conf: Path = CONF
) -> None:
    """Run `task`, a function by its dotted name, with the configuration that `conf/<config_name>.yaml` and the command
    line compose; `failed` is told of an exception first. The function's module, and torch with it, is imported when
    the configuration has been checked. Groups that the folder `conf` lacks are those of cnnlab.

    A mistake of the user's ends in one line on standard error and exit status 1; HYDRA_FULL_ERROR=1
    shows the traceback instead.
    """
    if conf != CONF:
        sys.argv.append(f"hydra.searchpath=['file://{CONF}']")
    if _answered(config_name, sys.argv[1:], conf):
        return
    full = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # Hydra then raises what it would else print
    sys.argv[1:] = _with_names(sys.argv[1:])

    sweeps: list[Path] = []  # of a sweep in this process, its folder once a job

    def checked(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            sweeps.append(Path(HydraConfig.get().sweep.dir).resolve())
        try:
            _check(cfg, _reference(config_name))
            module, _, function = task.rpartition(".")
            return getattr(import_module(module), function)(cfg)
        except Exception as error:
            if failed is not None:
                failed(cfg, error)
            if full or HydraConfig.get().mode == RunMode.MULTIRUN or not isinstance(error, MISTAKES):
                raise  # a sweep goes on with its other jobs
            _exit(_one_line(error, config_name, sys.argv[1:], conf))
        finally:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))

    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(checked)()
    except MISTAKES as error:
        if full:
            raise
        _exit(_one_line(error, config_name, sys.argv[1:], conf))
    except (ValueError, AssertionError) as error:  # Hydra's own, of data=0 and hydra.verbose=1
        if full or not raised_by(error, "hydra"):
            raise
        _exit(str(error) or "a setting of Hydra itself has a value that it does not take")
    finally:
        if config_name == "train" and len(sweeps) > 1:
            echo(f"\ncompare them     {command_line('compare', 'runs', sweeps[0])}")
        if not full:
            del os.environ[_FULL_ERROR]


def _answered(config_name: str, words: Sequence[str], conf: Path = CONF) -> bool:
    """Whether the words ask for help or the version, which is then said; a flag that there is not ends the command."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    for flag in flags:
        if flag not in FLAGS:
            name = flag.lstrip("-")
            _exit(f"there is no flag {flag}: settings are written without dashes, {name}=<value>")
    if "--version" in flags:
        echo(f"cnnlab {__version__}")
    elif {"-h", "--help"} & set(flags):
        echo(help_text(list(dict.fromkeys((conf, CONF))), config_name))
    return bool({"--version", "-h", "--help"} & set(flags))


@contextmanager
def compose_config(
    config_name: str, words: Iterable[str], folder: Path | str | None = None, config_dir: Path | str | None = None
) -> Iterator[DictConfig]:
    """Within, the configuration that `conf/<config_name>.yaml` and `words` compose, as `command` would hand it to its
    task, with `folder` as the run folder where one is given, and the files in `config_dir` beside those of `conf`.
    Hydra is left as it was.

    Raises `UserError` for a mistake in `words`; a run folder in which nothing was written goes away again.
    """
    if not _COMPOSING.acquire(blocking=False):
        raise UserError("another thread of this process trains already, and Hydra can serve one at a time; wait for it")
    try:
        with _composed(config_name, words, folder, config_dir) as cfg:
            yield cfg
    finally:
        _COMPOSING.release()


_COMPOSING = threading.RLock()  # Hydra keeps its state in the process


@contextmanager
def _composed(
    config_name: str, words: Iterable[str], folder: Path | str | None, config_dir: Path | str | None
) -> Iterator[DictConfig]:
    words = _with_names(words)
    if config_dir is not None and not Path(config_dir).expanduser().is_dir():
        raise UserError(f"there is no folder {config_dir}: config_dir holds folders like data/ with YAML files")
    if config_dir is not None:
        words.append(f"hydra.searchpath=['file://{Path(config_dir).expanduser().resolve()}']")
    before, hydra_before = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                cfg = compose(config_name, words, return_hydra_config=True)
                HydraConfig.instance().set_config(cfg)
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise UserError(f"{' '.join(words)} is a sweep, which python -m cnnlab.{config_name} starts")
                place = Path(folder or HydraConfig.get().run.dir).expanduser().resolve()
                with open_dict(cfg), read_write(cfg.hydra):
                    cfg.hydra.runtime.output_dir, cfg.hydra.job.name = str(place), IN_PYTHON
                    HydraConfig.instance().set_config(cfg)
                    del cfg["hydra"]
                _check(cfg, _reference(config_name))
                made = not place.exists()
                place.mkdir(parents=True, exist_ok=True)
            except MISTAKES as error:
                raise UserError(_one_line(error, config_name, words)) from None
            try:
                yield cfg
            finally:
                if made:
                    _remove_if_empty(place)
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = before, hydra_before


def _with_names(words: Iterable[str]) -> list[str]:
    return [f"++{word}" if word.startswith(NAMED_BY_USER) else word for word in words]


def _exit(message: str) -> NoReturn:
    """End with one line on standard error, also where a value in it has several."""
    sys.exit("error: " + " ".join(message.splitlines()))


def as_list(value: Any) -> list[str]:
    """The words of a setting that is one word, a list of words, or nothing."""
    if value is None:
        return []
    values = value if isinstance(value, ListConfig | list) else [value]
    return ["true" if word is True else str(word) for word in values]  # YAML reads `true` as a truth value


def config_with_choices(cfg: DictConfig) -> DictConfig:
    """`cfg` with the names of the chosen experiment and options in front."""
    choices = HydraConfig.get().runtime.choices
    options = {group: option for group, option in choices.items() if "/" not in group and option is not None}
    settings = {key: value for key, value in cfg.items() if key not in ("skip_finished", "paths")}
    return OmegaConf.create({"experiment": options.pop("experiment", "own"), "options": options, **settings})


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every value in nested mappings; lists and empty mappings are values."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a run that wrote nothing, and those around it below `outputs`."""
    with suppress(OSError):
        while folder.resolve() != Path.cwd() and folder.name != "outputs":
            folder.rmdir()
            folder = folder.parent
            if "outputs" not in folder.parts[:-1]:
                return


def _reference(config_name: str) -> DictConfig:
    """The configuration that the chosen groups give by themselves, without experiment or overrides."""
    choices = HydraConfig.get().runtime.choices
    groups = {group: option for group, option in choices.items() if "/" not in group and option is not None}
    without = ["~experiment"] if groups.pop("experiment", None) else []
    places = [word for word in HydraConfig.get().overrides.hydra if "hydra.searchpath" in word]
    return compose(config_name, [f"{group}={option}" for group, option in groups.items()] + without + places)


def _check(cfg: DictConfig, reference: DictConfig) -> None:
    """Raise `UserError` for a setting that does not exist, or whose value is of the wrong type."""
    known = dict(flatten(reference))
    for key, value in flatten(cfg):
        if key not in known:
            if key.startswith(OPEN):
                continue
            raise UserError(f"there is no setting '{key}'{_nearest(key, known)}")
        wanted = known[key]
        optional = value is None and key in OPTIONAL
        if not optional and not _fits(value, wanted) and not key.startswith(UNTYPED):
            raise UserError(f"{key}={value} is not {_KINDS[type(wanted)][1]}")


_KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a word"),
    dict: (dict, "names with values, like {angle: 5}"),
}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether `value` may stand where the YAML files have `wanted`. None and lists are left to the code."""
    if wanted is None or isinstance(wanted, list):
        return True
    return isinstance(value, _KINDS[type(wanted)][0]) and isinstance(value, bool) == isinstance(wanted, bool)


def _nearest(key: str, known: Iterable[str]) -> str:
    """The hint for a setting: the nearest of all, or those beside it."""
    hint = did_you_mean(key, known)
    if hint.startswith(";"):
        return hint
    parent = key.rpartition(".")[0]
    return did_you_mean(key, [other for other in known if other.rpartition(".")[0] == parent] or known)


def _one_line(error: BaseException, config_name: str, words: Sequence[str], conf: Path = CONF) -> str:
    """What went wrong, with the nearest right spelling or the options."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:  # there are circles
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            group, _, option = link.missing_cfg_file.rpartition("/")
            options = link.options or [path.stem for folder in {conf, CONF} for path in (folder / group).glob("*.yaml")]
            return f"there is no {group} '{option}'{did_you_mean(option, sorted(options))}"
        if isinstance(link, MarkedYAMLError) and link.problem_mark is not None:
            mark = link.problem_mark
            return f"{mark.name} is no valid YAML: {link.problem} in line {mark.line + 1}, column {mark.column + 1}"
        if isinstance(link, OSError):
            setting = "hydra.run.dir" if config_name == "train" else "out"
            return f"cannot write to {link.filename} ({link.strerror}); set {setting}=<folder>"
    message = " ".join(str(error).split()) or f"a setting cannot be read ({type(error).__name__})"
    if isinstance(error, UnicodeDecodeError):
        return f"a YAML file is not UTF-8 text ({message})"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {message}"
    if isinstance(error, ConfigCompositionException) and message.startswith("Could not override '"):
        inner = [str(link.full_key) for link in chain if isinstance(link, ConfigKeyError)]
        key = inner[0] if inner else message.split("'")[1]
        return f"there is no setting '{key}'{_nearest(key, _all_keys(config_name, words, conf))}"
    return message


def _all_keys(config_name: str, words: Sequence[str], conf: Path) -> list[str]:
    """Every group, and every setting of a command for the groups that `words` choose."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        groups = groups_of(conf / f"{config_name}.yaml")
        there = [
            word for word in words if any((at / f"{word.replace('=', '/')}.yaml").is_file() for at in (conf, CONF))
        ]
        chosen = [word for word in there if word.partition("=")[0] in groups]
        chosen += [word for word in words if word.startswith("hydra.searchpath=")]
        keys = [key for key, _ in flatten(OmegaConf.to_container(compose(config_name, chosen)))]
    return keys + groups
