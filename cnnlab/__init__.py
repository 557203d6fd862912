"""cnnlab: train convolutional networks, look inside them, and check what you see.

    run = cnnlab.train("multihead", seed=1)  # or cnnlab.load("<run folder>"), or cnnlab.newest()
    run.predict("line.png")
    run.attribute(run.examples(), head="angle", method="grad_cam")
    cnnlab.attribute(net, images)            # for any network

torch is imported when one of these is used.
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cnnlab.utils.errors import UserError

if TYPE_CHECKING:
    from cnnlab.api import Run, attribute, audit, load, newest, train

# Before torch is loaded: threads that wait then sleep. On a busy machine a training step takes half as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.12.0"
__all__ = ["Run", "UserError", "attribute", "audit", "load", "newest", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cnnlab import api

        return getattr(api, name)
    raise AttributeError(f"module 'cnnlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keep `cnnlab.train` and `cnnlab.audit` the functions when the command of the same name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
