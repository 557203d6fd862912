"""Training images a second: cnnlab beside Keras, and beside a loop written by hand in PyTorch."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from benchmarks.side_by_side import Library, Result, Rounds, command, compared, in_turns

BATCHES = {"Branched": 256, "Classifier-1": 128}
PRECISIONS = {"default": "auto", "float32": "32-true"}


def settings(name: str, steps: int) -> list[str]:
    """One epoch of so many steps."""
    images = steps * BATCHES[name]
    if name == "Branched":
        words = ["experiment=multihead", "net.dropout=0.25", f"data.train_per_class={images // 96}"]
        return [*words, "data.val_per_class=0", "data.test_per_class=1", "trainer.max_epochs=1"]
    return ["experiment=mnist", f"data.train_size={images}", "data.val_size=0", "trainer.max_epochs=1"]


def torch_rounds(name: str, steps: int) -> Rounds:
    from benchmarks.ours import ByHand, configuration, epoch_seconds

    rounds: Rounds = {}
    for label, precision in PRECISIONS.items():
        cfg = configuration(*settings(name, steps), f"trainer.precision={precision}")
        rounds[f"cnnlab, {label}"] = partial(epoch_seconds, cfg)
        rounds[f"by hand, {label}"] = ByHand(cfg)
    return rounds


def keras_rounds(name: str, pixels: Any, targets: dict[str, Any]) -> Rounds:
    from benchmarks import peers

    net = peers.branched() if name == "Branched" else peers.classifier1()
    images, batch = peers.as_keras(pixels), BATCHES[name]
    wanted = targets if name == "Branched" else targets["digit"]
    return {"Keras": partial(peers.epoch_seconds, net, images, wanted, batch)}


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    from benchmarks.ours import arrays, configuration
    from cnnlab.build import build_datamodule

    steps, rounds = (60, 7) if full else (12, 2)  # in threes: 3 x 256 is a multiple of 96
    rounds, results, figures = given or rounds, [], []
    for name, batch in BATCHES.items():
        data = build_datamodule(configuration(*settings(name, steps)))
        libraries = [Library(torch_rounds, name, steps), Library(keras_rounds, name, *arrays(data, "train"))]
        seconds = in_turns(libraries, rounds)
        work = f"{name}, batch {batch}"
        results += [
            compared(seconds, f"{work}, default precision", "cnnlab, default", "Keras", 1.6),
            compared(seconds, f"{work}, float32", "cnnlab, float32", "Keras", 1.0),
            compared(seconds, f"{work}, default precision", "cnnlab, default", "by hand, default", 0.97),
            compared(seconds, f"{work}, float32", "cnnlab, float32", "by hand, float32", 0.97),
        ]
        images = len(data.splits["train"])
        figures += [
            {"network": name, "contestant": who, "images/s (median)": f"{images / median(took):,.0f}"}
            for who, took in seconds.items()
        ]
    return results, figures


if __name__ == "__main__":
    command("training", measure, __doc__)
