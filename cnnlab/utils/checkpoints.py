"""Checkpoint files: where a run keeps them, and how they are read without running code."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.utils.errors import UserError
from cnnlab.utils.io import write_atomically


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of the checkpoint "best", "last", "previous" or "ood" of the run in `folder`."""
    return folder / "checkpoints" / f"{name}.ckpt"


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name, as `load_checkpoint` reads them, in one step."""
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors}, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of plain tensors and numbers, never code. Raises `UserError` for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises all kinds
        raise UserError(f"{path} is broken or no checkpoint of plain tensors ({type(error).__name__})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint: it holds no weights")
    return content


def last_valid_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest readable checkpoint of the run in `folder`, or None, and the broken ones before it."""
    broken = []
    for path in (checkpoint_path(folder, name) for name in ("last", "previous")):
        if path.is_file():
            try:
                load_checkpoint(path)
            except UserError:
                broken.append(path)
                continue
            return path, broken
    return None, broken
