"""Hydra command lines that answer mistakes in one line.

The YAML files are the schema: a setting exists if they name it, and its type is its default's type. Nothing here
imports torch, so that a typo is answered at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cnnlab import __version__
from cnnlab.utils.console import command_line, echo
from cnnlab.utils.errors import UserError, did_you_mean, one_line, raised_by

# In a wheel `conf` lies in the package, in a checkout next to it.
CONF = next(at / "conf" for at in Path(__file__).parents[1:3] if (at / "conf" / "train.yaml").is_file())

# Mappings with free keys: Hydra would require a `+` before each.
FREE_KEYS = ("weighting.weights.", "where.", "maps.", "networks.", "scenes.", "trainer.")
# Where `+` may add a setting that the YAML files do not name: arguments of other people's constructors.
OPEN = (*FREE_KEYS, "callbacks.", "logger.", "optimizer.", "lr_scheduler.", "method.")
# Settings that take several types.
UNTYPED = (
    *("trainer.devices", "trainer.precision", "trainer.max_epochs", "trainer.num_sanity_val_steps"),
    *("callbacks.", "logger."),
)
TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a word"),
    dict: (dict, "names with values, like {angle: 5}"),
}
MISTAKES = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError)
HYDRA_FLAGS = {
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "-i", "--info", "--experimental-rerun"),
}
_FULL_ERROR, _TRACEBACK = "HYDRA_FULL_ERROR", False
_COMPOSING = threading.RLock()  # Hydra keeps its state in the process


def net_as_target(words: Sequence[str]) -> list[str]:
    """Return words of a command line with `net=<function>` as `net._target_=<function>`: Hydra takes `net` alone for a
    config group."""
    return [re.sub("^net=", "net._target_=", word) for word in words]


def with_experiment_of_data(words: Sequence[str]) -> list[str]:
    """Return words of a training with an experiment that fits its data: `data=folder` alone means
    `experiment=folder`, and another set of pictures than lines `experiment=mnist`. The default is one of lines."""
    given = dict(word.partition("=")[::2] for word in words)
    data = given.get("data", "lines").partition(",")[0]
    if (
        data.startswith("lines")
        or given.keys() & {"experiment", "resume"}
        or not (CONF / f"data/{data}.yaml").is_file()
    ):
        return [*words]
    return _with_word(words, f"experiment={'folder' if data == 'folder' else 'mnist'}")


def _with_word(words: Sequence[str], word: str) -> list[str]:
    """Return a command line with one more override, beside the others: argparse does not take two groups of them."""
    places = [i for i, other in enumerate(words) if "=" in other and not other.startswith("-")]
    place = places[0] if places else len(words)
    return [*words[:place], word, *words[place:]]


def run_command(main: Callable[[], Any], config_name: str, conf: Path = CONF) -> None:
    """Run `main`, a function under `hydra.main`. A user's mistake ends in one line on standard error and exit status 1;
    HYDRA_FULL_ERROR=1 shows the traceback. Groups that the folder `conf` lacks come from cnnlab."""
    words = sys.argv[1:]
    if conf != CONF:
        words = _with_word(words, f"hydra.searchpath=['file://{CONF}']")
    if _print_help(config_name, words, conf):
        return
    global _TRACEBACK
    full = _TRACEBACK = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # Hydra then raises instead of printing
    sys.argv[1:] = _for_hydra(words)
    try:
        main()
    except MISTAKES as error:
        if full:
            raise
        _exit(_explain_mistake(error, config_name, sys.argv[1:], conf))
    except (ValueError, AssertionError) as error:  # of Hydra itself, as for data=0
        if full or not raised_by(error, "hydra"):
            raise
        _exit(str(error) or "a setting of Hydra itself has a value that it does not take")
    finally:
        if not full:
            del os.environ[_FULL_ERROR]


@contextmanager
def checked(cfg: DictConfig) -> Iterator[None]:
    """Check the settings of a command, then run the block. A mistake ends the command in one line; an empty run
    folder is removed."""
    config_name, multirun = str(HydraConfig.get().job.config_name), HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        _check(cfg, _reference(config_name))
        yield
    except MISTAKES as error:
        if multirun or _TRACEBACK:
            raise  # a sweep goes on with its other jobs
        _exit(_explain_mistake(error, config_name, sys.argv[1:]))  # here: Hydra would log an exception first
    finally:
        _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))


class CompareHint(Callback):
    """Print how to compare the runs of a sweep."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        echo(f"\ncompare them     {command_line('compare', 'runs', Path(config.hydra.sweep.dir).resolve())}")


@contextmanager
def compose_config(
    config_name: str, words: Iterable[str], folder: Path | str | None = None, config_dir: Path | str | None = None
) -> Iterator[DictConfig]:
    """Compose `conf/<config_name>.yaml` with the overrides `words`, as the command line does, with `folder` as the run
    folder and the YAML files in `config_dir` added. Hydra's state is restored afterwards, and an
    empty run folder removed. Raises `UserError` for a mistake in `words`."""
    if not _COMPOSING.acquire(blocking=False):
        raise UserError("another thread of this process is training, and Hydra can serve one at a time; wait for it")
    words = _for_hydra(words)
    before, hydra_before = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    try:
        if config_dir is not None:
            place = Path(config_dir).expanduser()
            if not place.is_dir():
                raise UserError(f"there is no folder {place}: config_dir holds folders like data/ with YAML files")
            words.append(f"hydra.searchpath=['file://{place.resolve()}']")
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                cfg = compose(config_name, words, return_hydra_config=True)
                HydraConfig.instance().set_config(cfg)
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise UserError(f"{' '.join(words)} is a sweep; start it with python -m cnnlab.{config_name}")
                place = Path(folder or HydraConfig.get().run.dir).expanduser().resolve()
                with open_dict(cfg), read_write(cfg.hydra):
                    cfg.hydra.runtime.output_dir = str(place)
                    HydraConfig.instance().set_config(cfg)
                    del cfg["hydra"]
                _check(cfg, _reference(config_name))
                made = not place.exists()
                place.mkdir(parents=True, exist_ok=True)
            except MISTAKES as error:
                raise UserError(_explain_mistake(error, config_name, words)) from None
            try:
                yield cfg
            finally:
                if made:
                    _remove_if_empty(place)
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = before, hydra_before
        _COMPOSING.release()


def as_list(value: Any) -> list[str]:
    """Return a setting that is one word, a list of words, or nothing, as a list."""
    if value is None:
        return []
    values = value if isinstance(value, ListConfig | list) else [value]
    return ["true" if word is True else str(word) for word in values]  # YAML reads `true` as a boolean


def config_with_choices(cfg: DictConfig) -> DictConfig:
    """Return `cfg` with the names of the chosen experiment and options in front."""
    options = _choices()
    settings = {key: value for key, value in cfg.items() if key not in ("skip_finished", "paths")}
    return OmegaConf.create({"experiment": options.pop("experiment", "own"), "options": options, **settings})


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every value in nested mappings; lists and empty mappings are values."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _choices() -> dict[str, str]:
    """Return {group: chosen option}."""
    choices = HydraConfig.get().runtime.choices.items()
    return {group: name for group, name in choices if "/" not in group and group != "hydra" and name is not None}


def _print_help(config_name: str, words: Sequence[str], conf: Path) -> bool:
    """Print the help or the version if `words` contain the flag. An unknown flag ends the command."""
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    for flag in sorted(flags - HYDRA_FLAGS):
        _exit(f"there is no flag {flag}: settings are written without dashes, {flag.lstrip('-')}=<value>")
    if "--version" in flags:
        echo(f"cnnlab {__version__}")
    elif {"-h", "--help"} & flags:
        echo(_help_text(config_name, conf))
    return bool({"--version", "-h", "--help"} & flags)


def _help_text(config_name: str, conf: Path) -> str:
    """Return a header, the groups with their options, and the command's YAML file with its comments."""
    text = (conf / f"{config_name}.yaml").read_text(encoding="utf-8")
    header = yaml.safe_load(text)["hydra"]["help"]
    lines = [header["template"].rstrip(), ""]
    groups = _groups(conf / f"{config_name}.yaml")
    if groups:
        lines.append("Groups (group=option, or several: group=[option,option]):")
    for group in groups:
        options = {option.stem for folder in (conf, CONF) for option in (folder / group).glob("*.yaml")}
        lines.append(f"  {group}: {', '.join(sorted(options))}")
    settings = text.partition("\n\n")[2].partition("\nhydra:")[0].strip()
    command = header["app_name"].split()[-1]
    lines += ["", "Settings (name=value), with their defaults:", settings, ""]
    return "\n".join([*lines, f"All of them: python -m {command} --cfg job"])


def _groups(file: Path) -> list[str]:
    """Return the config groups of a command, in the order of its defaults list."""
    entries = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    names = [next(iter(entry)).removeprefix("optional ") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if not name.startswith("override ") and name != "hydra"]


def _for_hydra(words: Iterable[str]) -> list[str]:
    """Return words of a command line as Hydra reads them: with `++` before free keys, and in quotes the names of files
    and values that Hydra cannot read, as with umlauts or brackets."""
    free = (*FREE_KEYS, *(f"{key[:-1]}={{" for key in FREE_KEYS))
    return [f"++{word}" if word.startswith(free) else word for word in map(_readable, words)]


def _readable(word: str) -> str:
    name, _, value = word.partition("=")
    if value and not word.startswith("-"):
        try:
            OverridesParser.create().parse_override(word)
            as_it_is = "," not in value or not os.path.exists(os.path.expanduser(value))
        except HydraException:
            as_it_is = value[0] in "[{'\""  # a list is not a name
        if not as_it_is:  # in quotes a backslash escapes before another quote only
            inside = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and "\\'"), value)
            return f"{name}='{inside}'"
    return word


def _exit(message: str) -> NoReturn:
    sys.exit("error: " + " ".join(message.splitlines()))


def _remove_if_empty(folder: Path) -> None:
    """Remove an empty run folder, and empty folders around it below `outputs`."""
    with suppress(OSError):
        while folder.resolve() != Path.cwd() and folder.name != "outputs":
            folder.rmdir()
            folder = folder.parent
            if "outputs" not in folder.parts[:-1]:
                return


def _reference(config_name: str) -> DictConfig:
    """Return the configuration of the chosen options without experiment and overrides."""
    groups = _choices()
    without = ["~experiment"] if groups.pop("experiment", None) else []
    places = [word for word in HydraConfig.get().overrides.hydra if "hydra.searchpath" in word]
    return compose(config_name, [f"{group}={option}" for group, option in groups.items()] + without + places)


def _check(cfg: DictConfig, reference: DictConfig) -> None:
    """Raise `UserError` for a setting that does not exist, or has a value of the wrong type."""
    known = dict(flatten(reference))
    for key, value in flatten(cfg):
        if key not in known:
            if key.startswith(OPEN):
                continue
            raise UserError(f"there is no setting '{key}'{_nearest(key, known)}")
        default = known[key]
        if default is None or isinstance(default, list) or key.startswith(UNTYPED):
            continue  # the code checks these
        kind, name = TYPES[type(default)]
        fits = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
        if not fits:
            raise UserError(f"{key}={value} is not {name}")


def _nearest(key: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown setting: the nearest of all, or its neighbours."""
    hint = did_you_mean(key, known)
    if hint.startswith(";"):
        return hint
    parent = key.rpartition(".")[0]
    return did_you_mean(key, [other for other in known if other.rpartition(".")[0] == parent] or known)


def _explain_mistake(error: BaseException, config_name: str, words: Sequence[str], conf: Path = CONF) -> str:
    """Return the mistake, with the nearest right spelling or the options."""
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
        if isinstance(link, yaml.MarkedYAMLError) and link.problem_mark is not None:
            mark = link.problem_mark
            return f"{mark.name} is no valid YAML: {link.problem} in line {mark.line + 1}, column {mark.column + 1}"
        if isinstance(link, OSError):
            setting = "hydra.run.dir" if config_name == "train" else "out"
            full = link.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
            if not full and link.filename is None:
                return one_line(link)
            what = f"{link.filename or 'the disk'} ({link.strerror})"
            missing = isinstance(link, FileNotFoundError | IsADirectoryError) and os.path.isdir(
                os.path.dirname(os.path.abspath(link.filename))  # without its folder it was to be written
            )
            if missing or (isinstance(link, PermissionError) and os.path.isfile(link.filename)):
                return f"cannot read {what}; if it is to be written, set {setting}=<folder>"
            return f"cannot write to {what}; set {setting}=<folder>"
    message = one_line(error) or f"a setting cannot be read ({type(error).__name__})"
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
    """Return every setting of a command for the options that `words` choose, and every group."""
    GlobalHydra.instance().clear()
    groups = _groups(conf / f"{config_name}.yaml")
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        chosen = [
            word
            for word in words
            if word.partition("=")[0] in groups
            and any((at / f"{word.replace('=', '/')}.yaml").is_file() for at in (conf, CONF))
        ]
        chosen += [word for word in words if word.startswith("hydra.searchpath=")]
        keys = [key for key, _ in flatten(OmegaConf.to_container(compose(config_name, chosen)))]
    return keys + groups
