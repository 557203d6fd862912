"""What drawing the lines costs: the share of the training time that goes into making the images."""

from __future__ import annotations

import time
from statistics import median

from research.performance.side_by_side import Library, Result, Rounds, command, in_turns
from research.performance.training import settings


def torch_rounds(steps: int) -> Rounds:
    from torch import Tensor

    from cnnlab.data.lines import LineDataset
    from research.performance.ours import configuration, epoch_seconds

    cfg = configuration(*settings("Branched", steps))
    plain, spent = LineDataset.inputs, [0.0]

    def timed(split: LineDataset, indices: Tensor) -> Tensor:
        start = time.perf_counter()
        images = plain(split, indices)
        spent[0] += time.perf_counter() - start
        return images

    LineDataset.inputs = timed  # type: ignore[assignment, method-assign]

    def training() -> float:
        spent[0] = 0.0
        return epoch_seconds(cfg)

    return {"training": training, "rendering": lambda: spent[0]}  # of the training just before


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    steps, rounds = (99, 15) if full else (30, 5)
    seconds = in_turns([Library(torch_rounds, steps)], given or rounds)
    shares = [100 * drawn / whole for drawn, whole in zip(seconds["rendering"], seconds["training"], strict=True)]
    result = Result("drawing the images", "training time of Branched", shares, at_most=2, unit="%")
    rate = f"{256 * steps / median(seconds['rendering']):,.0f}"
    return [result], [{"work": "rendering", "batch": "256", "images/s (median)": rate}]


if __name__ == "__main__":
    command("rendering", measure, __doc__)
