"""Which library should multiply the matrices of dense layers on this processor: steps of training with the products
left to oneDNN, beside those left to MKL (`hardware.MULTIPLY_BY_ONEDNN`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

from research.performance.side_by_side import Library, Result, Rounds, command, compared, in_turns
from research.performance.training import BATCHES, precisions, settings

LIBRARIES = {"oneDNN": True, "MKL": False}


def rounds_of(name: str, steps: int) -> Rounds:
    from cnnlab import hardware
    from research.performance.ours import ByHand, configuration

    hardware.disable_malloc_trim()

    def seconds(loop: Callable[[], float], by_onednn: bool) -> float:
        hardware.MULTIPLY_BY_ONEDNN = by_onednn
        return loop()

    rounds: Rounds = {}
    for label, precision in precisions().items():
        loop = ByHand(configuration(*settings(name, steps), f"trainer.precision={precision}"))
        rounds |= {f"{label}, {library}": partial(seconds, loop, by) for library, by in LIBRARIES.items()}
    return rounds


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    steps, rounds = (30, 7) if full else (6, 1)
    results, figures = [], []
    for name in BATCHES:
        took = in_turns([Library(rounds_of, name, steps)], given or rounds)
        results += [
            compared(took, f"a step of {name}, {label}", f"{label}, oneDNN", f"{label}, MKL", 1)
            for label in precisions()
        ]
        figures += [
            {"a step of": name, "products": who, "ms (median)": f"{1000 * median(values) / steps:.1f}"}
            for who, values in took.items()
        ]
    return results, figures


if __name__ == "__main__":
    command("products", measure, __doc__)
