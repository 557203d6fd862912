"""What --help says: the command, its groups, and every setting with its value now and the comment of its YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose
from omegaconf import OmegaConf

# Hydra's own flags.
FLAGS = {
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "-i", "--info", "--experimental-rerun"),
}
WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w/]+):(?P<value>[^#]*?)(?: +#\s*(?P<comment>.*))?$")
_ONLY_COMMENT = re.compile(r"^ {8,}#\s*(.*)$")  # goes on with the one above
COLUMN = 34  # where comments begin


def help_text(conf: Path, config_name: str, words: Sequence[str]) -> str:
    """The help of the command `config_name`, with the groups and settings that `words` choose."""
    main = conf / f"{config_name}.yaml"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(config_name, _overrides(words), return_hydra_config=True)
    choices = {group: option for group, option in cfg.hydra.runtime.choices.items() if "/" not in group}
    comments: dict[str, str] = {}
    for group, option in choices.items():
        for name in option if isinstance(option, list) else [option]:
            comments |= _comments_of_option(conf, group, str(name))
    comments = {**comments, **_comments(main, "")}
    groups = [group for group in groups_of(main) if (conf / group).is_dir()]
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    lines = [cfg.hydra.help.template.rstrip(), ""]
    if groups:
        lines.append("Groups (group=option, or several: group=[option,option]):")
        for group in groups:
            lines.append(f"  {group}: {', '.join(sorted(file.stem for file in (conf / group).glob('*.yaml')))}")
        lines.append("")
    lines += ["Settings (name=value, name.name=value), with their values now:", *_annotated(settings, comments)]
    return "\n".join(lines)


def _overrides(words: Sequence[str]) -> list[str]:
    """The settings among the words of a command line, but for those of which a sweep tries several values; a folder of
    one's own configuration becomes a place where Hydra searches."""
    found, flag = [], ""
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("-"):
            flag, given = name, value
        elif flag in WITH_VALUE:
            flag, given = flag, word
        else:
            flag, given = "", ""
            if "," not in re.sub(r"[\[{(].*[\])}]", "", value):
                found.append(word)
        if flag in ("-cd", "--config-dir") and given:
            found.append(f"hydra.searchpath=['file://{Path(given).expanduser().resolve()}']")
        if given:
            flag = ""
    return found


def groups_of(main: Path) -> list[str]:
    """The groups that a command has, in the order of its defaults."""
    entries = yaml.safe_load(main.read_text(encoding="utf-8")).get("defaults", [])
    names = [next(iter(entry)) for entry in entries if isinstance(entry, dict)]
    return [name.removeprefix("optional ") for name in names if not name.startswith("override ")]


def _comments_of_option(conf: Path, group: str, option: str) -> dict[str, str]:
    """The comments of an option's file and of those that it begins with."""
    file = conf / group / f"{option}.yaml"
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for entry in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found |= _comments_of_option(conf, group, entry)
    return found | _comments(file, "" if "@package _global_" in text else f"{group}.")


def _comments(file: Path, prefix: str) -> dict[str, str]:
    """{dotted setting: the comment behind it} of a YAML file."""
    found: dict[str, str] = {}
    last = ""
    for path, line in _paths(file.read_text(encoding="utf-8").splitlines()):
        more = _ONLY_COMMENT.match(line)
        if path:
            match = _LINE.match(line)
            last = f"{prefix}{path}" if match and match["comment"] else ""
            if match and last:
                found[last] = match["comment"]
        elif more and last:
            found[last] += f" {more[1]}"
        else:
            last = ""
    return found


def _paths(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted setting, line) of lines of YAML; "" for a line that sets none."""
    above: list[tuple[int, str]] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            yield "", line
            continue
        depth = len(match["indent"])
        above = [(indent, key) for indent, key in above if indent < depth]
        above.append((depth, match["key"]))
        yield ".".join(key for _, key in above), line


def _annotated(settings: Any, comments: dict[str, str]) -> list[str]:
    text = OmegaConf.to_yaml(settings, resolve=False)
    lines = []
    for path, line in _paths(text.splitlines()):
        comment = comments.get(path)
        lines.append(f"  {line}".ljust(COLUMN) + f"  # {comment}" if comment else f"  {line}")
    return lines
