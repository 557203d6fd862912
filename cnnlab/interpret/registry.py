"""Attribution methods by name: their titles, what each measures, and their settings in `conf/method/`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cnnlab.interpret.attribution import Method
from cnnlab.utils.cli import CONF
from cnnlab.utils.errors import UserError, did_you_mean, user_errors


def build_methods(config: DictConfig) -> dict[str, Method]:
    """Return {name: attribution method} of the `method` group. A user's own function is named by its `_target_`."""
    methods = {}
    for name, node in config.items():
        with user_errors(f"method.{name!s}"):
            methods[str(name)] = instantiate(node, _partial_=True, _convert_="all")
    if not methods:
        raise UserError("method={}: name at least one method, like method=[grad_cam]")
    return methods


def named_method(method: str | Method, **settings: Any) -> tuple[str, Method]:
    """Return the name of a method and the method with `settings`: a name of `conf/method/`, or a function.
    Raises `UserError` for an unknown name or setting."""
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
    """Return {name: method} of one or several methods, each a name or a function, or of {name: method}."""
    if isinstance(methods, Mapping):
        return {name: named_method(method)[1] for name, method in methods.items()}
    several = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
    pairs = [named_method(method) for method in several]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"methods {', '.join(names)}: two have one name; give {{name: function}}")
    return dict(pairs)
