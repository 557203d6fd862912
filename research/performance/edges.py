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


def mistakes(run: Run, lines: LineDataset) -> dict[int, dict[str, int]]:
    """Return {number of a line with a wrong answer: {head: predicted class}}."""
    wrong = {}
    for rows in torch.arange(len(lines)).split(500):
        images, targets = lines.batch(rows)
        logits = run.net(images)
        said = {head.name: head.predict(logits[head.name]) for head in run.heads}
        right = torch.stack([said[name] == targets[name] for name in said]).all(dim=0)
        for place in (~right).nonzero()[:, 0].tolist():
            wrong[int(rows[place])] = {name: int(classes[place]) for name, classes in said.items()}
    return wrong


def told(run: Run, lines: LineDataset, row: int, said: dict[str, int]) -> str:
    """Return the classes of a line, its pixels, and the wrong answers."""
    images, targets = lines.batch([row])
    lit = images[0].amax(dim=0).nonzero()
    (top, left), (bottom, right) = lit.amin(dim=0).tolist(), lit.amax(dim=0).tolist()
    true = {name: int(classes) for name, classes in targets.items()}
    names = {head.name: head.classes for head in run.heads}
    wrong = ", ".join(f"for {names[name][said[name]]}" for name in names if said[name] != true[name])
    line = " ".join(names[name][true[name]] for name in names)
    return f"  {line}, rows {top} to {bottom}, columns {left} to {right}, taken {wrong}"


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
            edges = touching(fresh, torch.tensor(list(found), dtype=torch.int64)).sum(dim=1).tolist()
            there = ", ".join(f"{count} {edge}" for count, edge in zip(edges, EDGES, strict=True))
            print(f"{run.path}: {len(found)} of {len(fresh):,} wrong; {there}")
            for row, said in found.items():
                print(told(run, fresh, row, said), flush=True)
