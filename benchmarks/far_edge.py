"""Where the mistakes of multi-head networks lie, on lines that nobody has drawn before.

python -m benchmarks.far_edge <run> ...                 100,032 new lines: how many are wrong, how many of these
                                                        touch an edge, what they are; how many of all lines touch one
python -m benchmarks.far_edge --per-class 10420 <run>   ten times as many
"""

from __future__ import annotations

import argparse

import torch

from cnnlab.data.draws import LineDraws
from cnnlab.data.lines import LineDataset
from cnnlab.runs import Run

SEED, PER_CLASS = 777, 1042  # no run has this seed
NEAR = 2  # rows or columns from the image's edge
EDGES = ("right or bottom", "left or top")


def mistakes(run: Run, lines: LineDataset) -> torch.Tensor:
    """The numbers, int64 (wrong,), of the lines of which a head says something wrong."""
    wrong = []
    with torch.inference_mode():
        for rows in torch.arange(len(lines)).split(2000):
            images, targets = lines[rows]
            logits = run.net(images)
            right = [head.predict(logits[head.name]) == targets[head.name] for head in run.task.heads]
            wrong.append(rows[~torch.stack(right).all(dim=0)])
    return torch.cat(wrong)


def touching(lines: LineDataset, rows: torch.Tensor) -> torch.Tensor:
    """Which of the lines come within two pixels of each of `EDGES`, bool (2, rows)."""
    lit = lines.images(rows).amax(dim=1) > 0
    down, across = lit.any(dim=2), lit.any(dim=1)
    sides = ((down[:, -NEAR:], across[:, -NEAR:]), (down[:, :NEAR], across[:, :NEAR]))
    return torch.stack([torch.cat(pair, dim=1).any(dim=1) for pair in sides])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.far_edge", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    given = parser.parse_args()
    fresh = LineDataset(LineDraws(SEED, "test"), given.per_class)
    some = torch.arange(0, len(fresh), 7)  # of all 96 kinds, which come in turns
    usual = torch.cat([touching(fresh, rows) for rows in some.split(10_000)], dim=1).float().mean(dim=1)
    print("of all lines", ", ".join(f"{share:.1%} touch {edge}" for share, edge in zip(usual, EDGES, strict=True)))
    for path in given.runs:
        run = Run(path)
        found = mistakes(run, fresh)
        there = ", ".join(
            f"{n} {edge}" for n, edge in zip(touching(fresh, found).sum(dim=1).tolist(), EDGES, strict=True)
        )
        print(f"{path}: {len(found)} of {len(fresh):,} wrong; {there}", flush=True)
        for row in found.tolist():
            images, targets = fresh[torch.tensor([row])]
            logits = run.net(images)
            said = {h.name: h.classes[int(h.predict(logits[h.name]))] for h in run.task.heads}
            true = {h.name: h.classes[int(targets[h.name])] for h in run.task.heads}
            lit = images[0].amax(dim=0).nonzero()
            (top, left), (bottom, right) = lit.amin(dim=0).tolist(), lit.amax(dim=0).tolist()
            wrong = ", ".join(f"{name} for {said[name]}" for name in true if said[name] != true[name])
            print(f"  {' '.join(true.values())}, rows {top} to {bottom}, columns {left} to {right}: {wrong}")
