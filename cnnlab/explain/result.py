"""What every result of looking at a network can do: draw itself, be kept, and show itself in a notebook."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cnnlab.errors import UserError
from cnnlab.io import write_json

if TYPE_CHECKING:
    from cnnlab.plots import Figure

VERSION = 1  # of what `save` writes


class Result(ABC):
    """A frozen result. In a notebook it shows its picture."""

    @abstractmethod
    def plot(self) -> Figure:
        """A picture of it, a matplotlib figure."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """Its numbers by name."""

    def facts(self) -> dict[str, Any]:
        """What is known of it besides its numbers, for JSON."""
        return {}

    def save(self, folder: Path | str) -> Path:
        """Write `arrays.npz`, `picture.png` and `manifest.json` into a new or empty folder; returns its path. Raises
        `UserError` where it holds something."""
        from cnnlab import plots

        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; nothing is written over")
        arrays: dict[str, Any] = {name: value.numpy() for name, value in self.arrays().items()}
        np.savez_compressed(folder / "arrays.npz", **arrays)
        plots.save(self.plot(), folder / "picture.png")
        shapes = {name: list(value.shape) for name, value in arrays.items()}
        write_json(
            folder / "manifest.json",
            {"version": VERSION, "kind": type(self).__name__, **self.facts(), "arrays": shapes},
        )
        return folder

    def _repr_png_(self) -> bytes:
        from cnnlab import plots

        picture = io.BytesIO()
        plots.save(self.plot(), picture)
        return picture.getvalue()
