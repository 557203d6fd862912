"""Writing files so that nothing is lost: whole or not at all, and never over what is there."""

from __future__ import annotations

import csv
import json
import os
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from cnnlab.errors import UserError


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


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never half of one. An `OSError`
    names `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:  # half a file helps nobody, least of all on a full disk
        try:
            partial.unlink(missing_ok=True)
        finally:
            raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers, without its empty cells; `ValueError` where one is no number."""
    with path.open(encoding="utf-8") as lines:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(lines)]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV text with a header of all their keys; empty where a row has no such key."""
    text = StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
