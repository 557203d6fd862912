"""Fills the tables of docs/performance.md from the records that the benchmarks wrote:

python -m benchmarks.training --full --out docs/performance/training.json      (and so on)
python docs/performance.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.side_by_side import report

DOCS = Path(__file__).parent


def _tables(name: str) -> str:
    file = DOCS / "performance" / f"{name}.json"
    return report(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else "Not measured yet."


def filled(text: str) -> str:
    """`text` with what stands between <!-- benchmark: name --> and <!-- end --> made anew."""
    pattern = r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{_tables(m[2])}\n\n{m[3]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    page = DOCS / "performance.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
