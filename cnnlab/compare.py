"""python -m cnnlab.compare: many runs in one table, with their learning curves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cnnlab import UserError


def main(words: list[str] | None = None) -> None:
    """Compare the runs that the command line names; a mistake ends in one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m cnnlab.compare",
        description="Compare runs: what differs between them, and what came of it. Runs that differ only in "
        "their seed are folded into mean, standard deviation and number.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders, or folders with runs inside (a sweep)"
    )
    parser.add_argument(
        "--on",
        metavar="HEAD=CLASS",
        help="accuracies on the test images of one class alone, as in --on colour=green",
    )
    parser.add_argument(
        "--out", type=Path, help="where compare.html, .csv and .png go (the folder itself where one is named)"
    )
    chosen = parser.parse_args(words)
    from cnnlab.comparison_report import compare  # what it needs is slow to import: --help is answered before

    try:
        compare(chosen.runs, chosen.out, chosen.on)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
