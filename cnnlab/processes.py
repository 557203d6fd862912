"""A run on several devices: one process each, of which this one starts the others, keeps the folder and
speaks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cnnlab import UserError

RANK = "LOCAL_RANK"  # of a process on its machine; also what torchrun sets, and what Lightning reads
_TORCHRUN = ("RANK", RANK, "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


def rank() -> int:
    """The number of this process, 0 for the one that keeps the folder."""
    return int(os.environ.get("RANK", os.environ.get(RANK, "0")))


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """`folder` for process 0; for the others one of their own, of which nothing stays."""
    if rank() == 0:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


@contextmanager
def together(devices: int, words: Sequence[str]) -> Iterator[None]:
    """Within, `devices` - 1 other processes do `python -m cnnlab.train <words>` together with this one.

    Does nothing for one device, in one of the others, and where torchrun has started them all. Raises
    `UserError` with the last thing that another said if it stopped with an error.
    """
    if devices == 1 or RANK in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        said = [Path(scratch) / f"{number}.log" for number in range(1, devices)]
        others = [_start(number, words, common, file) for number, file in enumerate(said, start=1)]
        os.environ.update(common | {RANK: "0"})
        try:
            yield
            for other in others:
                other.wait()
        except Exception as error:
            for other, file in zip(others, said, strict=True):
                if other.poll():
                    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    raise UserError(f"another process of the run stopped: {lines[-1:]}") from error
            raise
        finally:
            for other in others:
                other.kill()
                other.wait()
            part()
            for name in (*common, RANK):
                os.environ.pop(name, None)


def part() -> None:
    """Go on alone: nothing is in step with other processes any more."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within, nothing says that torchrun has started this process together with others."""
    names = [name for name in os.environ if name.startswith("TORCHELASTIC_") or name in _TORCHRUN]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def machines(devices: int) -> int:
    """On how many machines torchrun runs `devices` processes each; 1 where it does not."""
    return int(os.environ.get("WORLD_SIZE", devices)) // devices if devices else 1


def _start(number: int, words: Sequence[str], common: dict[str, str], said: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **common, RANK: str(number)}
    command = [sys.executable, "-m", "cnnlab.train", *words, "hydra.mode=RUN"]
    command += [f"hydra.run.dir={said.with_suffix('')}"]  # Hydra would make a new folder for it
    with said.open("w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)
