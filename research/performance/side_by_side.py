"""Contestants in turns: every library in a process of its own, one at work at a time, round after round.

Absolute times are noisy where a machine is shared, so every claim is a ratio of two neighbours in the same
round: its median, and the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

Rounds = dict[str, Callable[[], float]]  # {contestant: function that does its work once and returns the seconds}

PACKAGES = ("cnnlab", "torch", "lightning", "captum", "keras", "tensorflow-cpu", "jax", "grad-cam", "torchcam")

# What keeps each library to AVX2, as a machine without AVX-512 has it: oneDNN, PyTorch, MKL, XLA.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}


class Library:
    """A process that makes its contestants, `make(*args)`, and then does a round of one when asked."""

    def __init__(self, make: Callable[..., Rounds], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Its contestants; waits until they are made."""
        if self._names is None:
            self._names = self._answer()
        return self._names

    def round(self, name: str) -> float:
        """The seconds of one round of a contestant."""
        self._pipe.send(name)
        return float(self._answer())

    def end(self) -> None:
        self._process.terminate()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("a contestant's process ended early; its error stands above") from None


def _serve(pipe: Connection, make: Callable[..., Rounds], args: tuple[Any, ...]) -> None:
    rounds = make(*args)
    pipe.send(list(rounds))
    while True:
        pipe.send(rounds[pipe.recv()]())


def in_turns(libraries: Sequence[Library], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """{contestant: seconds of each round}, without the rounds to warm up. Each round is in another random order, the
    same in each measurement: who comes first in a process finds its caches cold. Ends the libraries."""
    turns = [(library, name) for library in libraries for name in library.names]
    seconds: dict[str, list[float]] = {name: [] for _, name in turns}
    for number in range(warm_up + rounds):
        for library, name in random.Random(number).sample(turns, len(turns)):
            took = library.round(name)
            if number >= warm_up:
                seconds[name].append(took)
    for library in libraries:
        library.end()
    return seconds


@dataclass(frozen=True)
class Result:
    """What was measured, round by round, and what is asked of its median: `at_least` or `at_most`. `unit` is
    "times", where it says how much faster than `against` the work was done; or "s", or "%"."""

    work: str
    against: str
    values: list[float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "times"

    @property
    def cells(self) -> list[str]:
        low, middle, high = (f"{f(self.values):.3g}" for f in (min, median, max))
        goal = f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"
        spread = f"{low} to {high}"
        return [self.work, self.against, f"{middle} {self.unit}", spread, str(len(self.values)), goal]


def best(seconds: dict[str, list[float]], among: Iterable[str]) -> str:
    """The contestant of the shortest median."""
    return min(among, key=lambda who: median(seconds[who]))


def avx2_alone() -> bool:
    """Whether this process was told to use no later instructions."""
    return all(os.environ.get(name) == value for name, value in AVX2.items())


def compared(seconds: dict[str, list[float]], work: str, ours: str, theirs: str, at_least: float) -> Result:
    """How many times faster `ours` was than its neighbour in each round."""
    pairs = zip(seconds[ours], seconds[theirs], strict=True)
    return Result(work, theirs, [other / own for own, other in pairs], at_least=at_least)


RESULT_HEADER = ["work", "against", "median", "spread", "rounds", "goal"]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first two columns are words."""
    marks = ["---", "---", *["---:"] * (len(header) - 2)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, marks, *rows))


def machine() -> dict[str, Any]:
    """Return processor, threads, instructions, and versions."""
    from cnnlab.utils import hardware  # torch comes with it: not in a process that measures another library

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": hardware.description(),
        "instructions": "AVX2 alone, simulated" if avx2_alone() else ", ".join(instructions()) or "none of AVX-512",
        "python": platform.python_version(),
        **versions,
    }


def instructions() -> list[str]:
    """Those for matrices and for long vectors that PyTorch finds on this processor."""
    import torch

    names = {"AVX-512": "avx512", "AVX-512 BF16": "avx512_bf16", "AMX": "amx_tile"}
    return [name for name, word in names.items() if getattr(torch.cpu, f"_is_{word}_supported")()]


def report(record: dict[str, Any]) -> str:
    """A benchmark's tables in Markdown, from what its JSON file says."""
    results, figures = record["results"], record["figures"]
    tables = []
    if results:
        tables.append(markdown(RESULT_HEADER, [Result(**result).cells for result in results]))
    if figures:
        tables.append(markdown(list(figures[0]), [list(row.values()) for row in figures]))
    return "\n\n".join(tables)


def command(
    name: str, measure: Callable[[bool, int | None], tuple[list[Result], list[dict[str, str]]]], words: str | None
) -> None:
    """`python -m research.performance.<name>`: measure, print the tables, write the JSON file.

    `measure` takes whether to measure in full, and how many rounds if not its own number, and gives results
    and rows of absolute figures.
    """
    parser = argparse.ArgumentParser(prog=f"python -m research.performance.{name}", description=words)
    parser.add_argument("--full", action="store_true", help="for the record, not for a quick look")
    parser.add_argument("--rounds", type=int, help="how many, instead of the mode's own number")
    parser.add_argument("--avx2", action="store_true", help="as a machine does that has no later instructions")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks") / f"{name}.json")
    given = parser.parse_args()
    if given.avx2:
        os.environ.update(AVX2)  # before a library is imported; the contestants' processes have it from here
    results, figures = measure(given.full, given.rounds)
    record: dict[str, Any] = {
        "benchmark": name,
        "mode": "full" if given.full else "short",
        "machine": machine(),
        "results": [asdict(result) for result in results],
        "figures": figures,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{report(record)}\n\n{record['machine']['processor']}, {record['machine']['instructions']}; {given.out}")
