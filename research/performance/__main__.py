"""All benchmarks, one after another, and one table of what they found; hours with --full."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from research.performance.side_by_side import RESULT_HEADER, Result, markdown

NAMES = ("training", "explaining", "time_to_accuracy", "startup", "scale")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m research.performance", description=__doc__)
    parser.add_argument("--full", action="store_true", help="for the record, not for a quick look")
    parser.add_argument("--avx2", action="store_true", help="as a machine does that has no later instructions")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="the folder of the JSON files")
    given = parser.parse_args()
    words = [f"--{word}" for word in ("full", "avx2") if getattr(given, word)]
    rows, machine = [], {}
    for name in NAMES:
        file = given.out / f"{name}.json"
        subprocess.run([sys.executable, "-m", f"research.performance.{name}", *words, "--out", file], check=True)
        record = json.loads(file.read_text(encoding="utf-8"))
        machine = record["machine"]
        rows += [Result(**result).cells for result in record["results"]]
    print("\n" + markdown(RESULT_HEADER, rows) + "\n\n" + ", ".join(f"{name} {what}" for name, what in machine.items()))
