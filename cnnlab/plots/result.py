"""The base class of results: they draw and save themselves, show themselves in a notebook, and become DataFrames."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cnnlab.utils.errors import UserError, check_installed
from cnnlab.utils.io import to_csv, write_atomically, write_json

if TYPE_CHECKING:
    from cnnlab.plots import Figure

VERSION = 1  # of what `save` writes


class Result(ABC):
    """A read-only result. A notebook shows its picture."""

    @abstractmethod
    def plot(self) -> Figure:
        """Return a matplotlib figure."""

    def arrays(self) -> dict[str, Tensor]:
        """Return its numbers by name."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """Return everything but the numbers, for JSON."""
        return {}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of its table, if it has one."""
        return []

    def to_pandas(self) -> Any:
        """Return its table as a pandas DataFrame. Raises `UserError` where it has none, or pandas is missing."""
        if not self.rows():
            raise UserError(f"{type(self).__name__} is no table")
        check_installed("notebook", "pandas")
        import pandas as pd

        return pd.DataFrame(self.rows())

    def save(self, folder: Path | str) -> Path:
        """Write `picture.png`, `manifest.json`, and `arrays.npz` and `table.csv` if there are any, into a new or empty
        folder; return its path. Raises `UserError` for a folder with content."""
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
            {"version": VERSION, "kind": type(self).__name__, **self.metadata(), "arrays": shapes},
        )
        return folder

    def _repr_png_(self) -> bytes:
        from cnnlab import plots

        picture = io.BytesIO()
        plots.save(self.plot(), picture)
        return picture.getvalue()
