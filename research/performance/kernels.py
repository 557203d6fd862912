"""The kernels of a training step and their instruction sets, from the libraries' own logs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict

from research.performance.side_by_side import Result, command
from research.performance.training import BATCHES, precisions, settings

STEPS = 3
WORK = """
import sys, torch
from research.performance.ours import configuration, epoch_seconds
epoch_seconds(configuration(*sys.argv[1:]))
print("ATen:", torch.backends.cpu.get_cpu_capability())
"""
INSTRUCTIONS = {  # {library: what comes before them in its log}
    "oneDNN": r"onednn_verbose,.*info,cpu,isa:(.*)",
    "MKL": r"MKL_VERBOSE oneMKL .*?\((Intel\(R\) [^)]*)\)",
    "ATen": r"ATen: (.*)",
}


def shares(log: str) -> dict[str, float]:
    """{kernel: its share of the time} of a log that oneDNN wrote with ONEDNN_VERBOSE=1."""
    took: dict[str, float] = defaultdict(float)
    for line in log.splitlines():
        cells = line.split(",")
        if line.startswith("onednn_verbose") and "exec" in cells and "cpu" in cells:
            place = cells.index("cpu")
            took[f"{cells[place + 1]}: {cells[place + 2]}"] += float(cells[-1])
    whole = sum(took.values())
    return {name: time / whole for name, time in sorted(took.items(), key=lambda pair: -pair[1])}


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    rows: list[tuple[str, str, str]] = []
    for name in BATCHES:
        for label, precision in precisions().items():
            words = [*settings(name, STEPS), f"trainer.precision={precision}"]
            log = subprocess.run(
                [sys.executable, "-c", WORK, *words],
                env={**os.environ, "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"},
                stdout=subprocess.PIPE, text=True, check=True,
            ).stdout  # fmt: skip
            if not rows:
                found = {library: re.search(pattern, log) for library, pattern in INSTRUCTIONS.items()}
                rows += [
                    ("the instructions in use", f"{lib}: {at[1] if at else 'not said'}", "")
                    for lib, at in found.items()
                ]
            rows += [(f"{name}, {label}", what, f"{share:.0%}") for what, share in shares(log).items() if share >= 0.05]
    return [], [dict(zip(("step", "kernel", "share of oneDNN's time"), row, strict=True)) for row in rows]


if __name__ == "__main__":
    command("kernels", measure, __doc__)
