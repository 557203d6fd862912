"""Where the mistakes of multi-head networks lie, on lines that nobody has drawn before.

python -m benchmarks.far_edge <run> ...    100,032 new lines: how many are wrong, and how many of these touch an edge
"""

from __future__ import annotations

import sys

import torch

from cnnlab.data.draws import LineDraws
from cnnlab.data.lines import LineDataset
from cnnlab.runs import Run

SEED, PER_CLASS = 777, 1042  # no run has this seed
NEAR = 2  # rows or columns from the image's edge


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


def touching(lines: LineDataset, rows: torch.Tensor) -> tuple[int, int]:
    """How many of the lines come within two pixels of the right or bottom edge, and of the left or top one."""
    lit = lines.images(rows).amax(dim=1) > 0
    down, across = lit.any(dim=2), lit.any(dim=1)
    far = down[:, -NEAR:].any(dim=1) | across[:, -NEAR:].any(dim=1)
    near = down[:, :NEAR].any(dim=1) | across[:, :NEAR].any(dim=1)
    return int(far.sum()), int(near.sum())


if __name__ == "__main__":
    fresh = LineDataset(LineDraws(SEED, "test"), PER_CLASS)
    for path in sys.argv[1:]:
        found = mistakes(Run(path), fresh)
        far, near = touching(fresh, found)
        print(
            f"{path}: {len(found)} of {len(fresh):,} wrong; at the far edge {far}, at the near one {near}", flush=True
        )
