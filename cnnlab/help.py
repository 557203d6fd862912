"""What --help prints: the command, its groups with their options, and its YAML file with the comments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

# Hydra's own flags.
FLAGS = {
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "-i", "--info", "--experimental-rerun"),
}


def help_text(folders: Sequence[Path], config_name: str) -> str:
    """Return the help of a command whose YAML file is in the first of `folders`; all of them may hold its groups."""
    file = folders[0] / f"{config_name}.yaml"
    text = file.read_text(encoding="utf-8")
    header = yaml.safe_load(text)["hydra"]["help"]["template"].rstrip()
    groups = groups_of(file)
    lines = [header, ""] + (["Groups (group=option, or several: group=[option,option]):"] if groups else [])
    for group in groups:
        options = {option.stem for folder in folders for option in (folder / group).glob("*.yaml")}
        lines.append(f"  {group}: {', '.join(sorted(options))}")
    settings = text.partition("\n\n")[2].partition("\nhydra:")[0].strip()
    command = f"python -m {yaml.safe_load(text)['hydra']['help']['app_name'].split()[-1]}"
    return "\n".join(
        [*lines, "", "Settings (name=value), with their defaults:", settings, "", f"All of them: {command} --cfg job"]
    )


def groups_of(main: Path) -> list[str]:
    """Return the groups that a command has, in the order of its defaults."""
    entries = yaml.safe_load(main.read_text(encoding="utf-8")).get("defaults", [])
    names = [next(iter(entry)) for entry in entries if isinstance(entry, dict)]
    return [name.removeprefix("optional ") for name in names if not name.startswith("override ")]
