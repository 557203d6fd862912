"""What every result can do: draw itself, be kept, and show itself in a notebook; tables also go to pandas."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cnnlab.errors import UserError
from cnnlab.io import to_csv, write_atomically, write_json

if TYPE_CHECKING:
    from cnnlab.plots import Figure

VERSION = 1  # of what `save` writes


class Result(ABC):
    """A frozen result. In a notebook it shows its picture."""

    @abstractmethod
    def plot(self) -> Figure:
        """A picture of it, a matplotlib figure."""

    def arrays(self) -> dict[str, Tensor]:
        """Its numbers by name."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What is known of it besides its numbers, for JSON."""
        return {}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of its table, where it is one."""
        return []

    def to_pandas(self) -> Any:
        """Its table as a pandas DataFrame. Raises `UserError` where it has none, or pandas is not installed."""
        if not self.rows():
            raise UserError(f"{type(self).__name__} is no table")
        try:
            import pandas as pd
        except ImportError:
            raise UserError("pandas is not installed: pip install pandas") from None
        return pd.DataFrame(self.rows())

    def save(self, folder: Path | str) -> Path:
        """Write `picture.png`, `arrays.npz` and `table.csv` (where it has them) and `manifest.json` into a new or empty
        folder; returns its path. Raises `UserError` where it holds something."""
        from cnnlab import plots

        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{folder} is a file, no folder") from None
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; nothing is written over")
        arrays: dict[str, Any] = {name: value.numpy() for name, value in self.arrays().items()}
        if arrays:
            np.savez_compressed(folder / "arrays.npz", **arrays)
        if self.rows():
            write_atomically(folder / "table.csv", to_csv(self.rows()))
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
