"""Write files atomically, and never over existing ones."""

from __future__ import annotations

import csv
import json
import os
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from cnnlab.utils.errors import UserError


def check_is_folder(out: Any) -> None:
    """Raise `UserError` where the setting `out` names a file."""
    if out is not None and Path(str(out)).expanduser().is_file():
        raise UserError(f"cannot write to {out}: it is a file; set out=<folder>")


def new_folder(parent: Path) -> Path:
    """Create and return a new folder `parent`/<number>, also when two processes start at once."""
    check_is_folder(parent)
    for number in count(1):
        folder = parent / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file in one step: readers see the old one or the new one. An `OSError` names `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:  # remove half a file, as of a full disk
        try:
            partial.unlink(missing_ok=True)
        finally:
            raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_csv(path: Path) -> list[dict[str, float]]:
    """Return the rows of a CSV file of numbers, without empty cells and NaN. Raises `ValueError` for other values."""
    with path.open(encoding="utf-8") as lines:
        return [{k: float(v) for k, v in row.items() if v not in ("", "nan")} for row in csv.DictReader(lines)]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV text with a header of all their keys; missing values are empty."""
    text = StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
