"""All benchmarks, one after another, and one table of what they found: python -m benchmarks.all [--full] [--avx2]"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.side_by_side import RESULT_HEADER, Result, markdown

NAMES = ("training", "explaining", "time_to_accuracy", "rendering", "startup", "limits", "kernels")
OUT = Path("outputs/benchmarks")

if __name__ == "__main__":
    rows, machine = [], {}
    for name in NAMES:
        file = OUT / f"{name}.json"
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:], "--out", file], check=True)
        record = json.loads(file.read_text(encoding="utf-8"))
        machine = record["machine"]
        rows += [Result(**result).cells for result in record["results"]]
    print("\n" + markdown(RESULT_HEADER, rows) + "\n\n" + ", ".join(f"{name} {what}" for name, what in machine.items()))
