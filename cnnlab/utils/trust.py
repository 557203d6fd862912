"""The code that a run folder from outside may run: classes of cnnlab's own YAML files, and packages the user trusts."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from cnnlab.utils.cli import CONF
from cnnlab.utils.errors import UserError, user_errors


def check_trusted(config: Any, file: Path) -> None:
    """Raise `UserError` for a configuration with other code, or with interpolations. CNNLAB_TRUST=<package>,... allows
    the classes and functions of more packages."""
    node = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{file} holds the interpolation {node}; a run's configuration is written without any")
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_" and str(value) not in shipped_targets() and not _trusted_by_user(str(value)):
                package = str(value).partition(".")[0]
                raise UserError(f"{file} would run {value}; if you trust it, set CNNLAB_TRUST={package}")
            check_trusted(value, file)


@cache
def shipped_targets() -> frozenset[str]:
    """Return every `_target_` in `conf/`."""
    texts = [path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text))


def _trusted_by_user(target: str) -> bool:
    """Return whether CNNLAB_TRUST names the package that defines the target."""
    packages = [name for name in os.environ.get("CNNLAB_TRUST", "").split(",") if name]
    if target.partition(".")[0] not in packages:
        return False
    with user_errors(target):
        module = str(getattr(get_object(target), "__module__", ""))
    return module.partition(".")[0] in packages
