"""Writing files so that nothing is lost: whole or not at all, and never over what is there."""

from __future__ import annotations

import csv
import os
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from cnnlab import UserError


def new_folder(parent: Path) -> Path:
    """A new folder `parent`/<number>: never one that is there, also not when two start at once."""
    for number in count(1):
        folder = parent / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(f"cannot write to {parent}: it is a file; set out=<folder>") from None
            continue
        return folder
    raise AssertionError


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:  # half a file helps nobody
        partial.unlink(missing_ok=True)
        raise


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; `ValueError` where one is none."""
    with path.open(encoding="utf-8") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as CSV text with a header."""
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
