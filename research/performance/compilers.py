"""Training images a second of Keras compiled by XLA and on JAX, beside Keras and plain PyTorch as they come: apart from
`research.performance.training`, since on a CPU they are several times slower than the best of it."""

from __future__ import annotations

from statistics import median

from research.performance.side_by_side import Library, Result, command, in_turns
from research.performance.training import BATCHES, keras_rounds, plain_rounds, settings

NAME, STEPS = "Branched", 12


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    from cnnlab.training.build import build_datamodule
    from research.performance.ours import arrays, configuration

    images, targets = arrays(build_datamodule(configuration(*settings(NAME, STEPS))), "train")
    libraries = [
        Library(plain_rounds, NAME, STEPS, False),
        *(Library(keras_rounds, NAME, backend, True, images, targets) for backend in ("tensorflow", "jax")),
    ]
    seconds = in_turns(libraries, given or 2)
    rate = {who: BATCHES[NAME] * STEPS / median(took) for who, took in seconds.items()}
    ordered = sorted(rate, key=lambda who: -rate[who])
    return [], [{"network": NAME, "contestant": who, "images/s (median)": f"{rate[who]:,.0f}"} for who in ordered]


if __name__ == "__main__":
    command("compilers", measure, __doc__)
