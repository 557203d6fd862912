"""Where the mistakes of multi-head networks lie, on lines that nobody has drawn before.

python -m research.performance.edges <run> ...                # 100,032 new lines: which are wrong, which touch an edge
python -m research.performance.edges --per-class 10420 <run>  # ten times as many
"""

from __future__ import annotations

import argparse

import torch

from cnnlab.api import Run
from cnnlab.data.lines import LineDataset
from cnnlab.data.sampling import LineSampler
from cnnlab.utils import hardware
from cnnlab.utils.errors import UserError

SEED, PER_CLASS = 777, 1042  # no run has this seed
NEAR = 2  # rows or columns from the image's edge
EDGES = ("right or bottom", "left or top")


def mistakes(run: Run, lines: LineDataset) -> list[int]:
    """Return the numbers of the lines with a wrong answer."""
    wrong = []
    for rows in torch.arange(len(lines)).split(500):
        images, targets = lines.batch(rows)
        logits = run.net(images)
        right = [head.predict(logits[head.name]) == targets[head.name] for head in run.heads]
        wrong += rows[~torch.stack(right).all(dim=0)].tolist()
    return wrong


def touching(lines: LineDataset, rows: torch.Tensor) -> torch.Tensor:
    """Which of the lines come within two pixels of each of `EDGES`, bool (2, rows)."""
    lit = lines.images(rows).amax(dim=1) > 0
    down, across = lit.any(dim=2), lit.any(dim=1)
    sides = ((down[:, -NEAR:], across[:, -NEAR:]), (down[:, :NEAR], across[:, :NEAR]))
    return torch.stack([torch.cat(pair, dim=1).any(dim=1) for pair in sides])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m research.performance.edges", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    given = parser.parse_args()
    try:
        runs = [Run(path) for path in given.runs]
    except UserError as error:
        parser.error(str(error))
    hardware.disable_malloc_trim()
    fresh = LineDataset(LineSampler(SEED, "test"), given.per_class)
    some = torch.arange(0, len(fresh), 7)  # of all 96 kinds, which come in turns
    usual = torch.cat([touching(fresh, rows) for rows in some.split(10_000)], dim=1).float().mean(dim=1)
    print("of all lines", ", ".join(f"{share:.1%} touch {edge}" for share, edge in zip(usual, EDGES, strict=True)))
    for run in runs:
        with torch.inference_mode():
            found = mistakes(run, fresh)
            edges = touching(fresh, torch.tensor(found, dtype=torch.int64)).sum(dim=1).tolist()
            there = ", ".join(f"{count} {edge}" for count, edge in zip(edges, EDGES, strict=True))
            print(f"{run.path}: {len(found)} of {len(fresh):,} wrong; {there}")
