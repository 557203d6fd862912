"""Training images a second: cnnlab beside Keras on TensorFlow, beside plain PyTorch, and beside its own network in a
loop written by hand."""

from __future__ import annotations

import os
from functools import partial
from statistics import median
from typing import Any

from research.performance.side_by_side import Library, Result, Rounds, avx2_alone, best, command, compared, in_turns

BATCHES = {"Branched": 256, "Classifier-1": 128}
PRECISIONS = {"default": "auto", "float32": "32-true"}  # AVX2 has only the second
FLOAT32 = "float32"  # in the name of every contestant that trains so


def settings(name: str, steps: int) -> list[str]:
    """One epoch of so many steps."""
    images = steps * BATCHES[name]
    if name == "Branched":
        words = ["experiment=multihead_report_b", "net.dropout=0.25", f"data.train_per_class={images // 96}"]
        return [*words, "data.val_per_class=0", "data.test_per_class=1", "trainer.max_epochs=1"]
    return ["experiment=mnist", f"data.train_size={images}", "data.val_size=0", "trainer.max_epochs=1"]


def precisions() -> dict[str, str]:
    """{label: Lightning's word} of the precisions that are compared."""
    return {FLOAT32: PRECISIONS[FLOAT32]} if avx2_alone() else PRECISIONS


def torch_rounds(name: str, steps: int) -> Rounds:
    from cnnlab.utils import hardware
    from research.performance.ours import ByHand, configuration, epoch_seconds

    hardware.disable_malloc_trim()
    rounds: Rounds = {}
    for label, precision in precisions().items():
        cfg = configuration(*settings(name, steps), f"trainer.precision={precision}")
        rounds[f"cnnlab, {label}"] = partial(epoch_seconds, cfg)
        rounds[f"by hand, {label}"] = ByHand(cfg)
    return rounds


def plain_rounds(name: str, steps: int, compiled: bool) -> Rounds:
    from research.performance import plain_torch
    from research.performance.ours import ByHand, configuration

    make = plain_torch.branched if name == "Branched" else plain_torch.classifier1
    rounds: Rounds = {}
    for label, precision in {FLOAT32: "32-true", **({} if avx2_alone() else {"bfloat16": "bf16-mixed"})}.items():
        cfg = configuration(*settings(name, steps), f"trainer.precision={precision}")
        rounds[f"PyTorch, {label}"] = ByHand(cfg, make(), channels_last=False)
        rounds[f"PyTorch, channels last, {label}"] = ByHand(cfg, make())
        if compiled:
            rounds[f"PyTorch, compiled, {label}"] = ByHand(cfg, make(), compiled=True)
    return rounds


def keras_rounds(name: str, pixels: Any, targets: dict[str, Any]) -> Rounds:
    os.environ["KERAS_BACKEND"] = "tensorflow"  # read when it is imported
    import keras

    from research.performance import peers

    make = peers.branched if name == "Branched" else peers.classifier1
    images, wanted = peers.as_keras(pixels), targets if name == "Branched" else targets["digit"]
    rounds: Rounds = {}
    for label, policy in {FLOAT32: "float32", **({} if avx2_alone() else {"bfloat16": "mixed_bfloat16"})}.items():
        keras.config.set_dtype_policy(policy)
        rounds[f"Keras, TensorFlow, {label}"] = partial(peers.epoch_seconds, make(), images, wanted, BATCHES[name])
    return rounds


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    from cnnlab.training.build import build_datamodule
    from research.performance.ours import arrays, configuration

    steps, rounds = (30, 7) if full else (12, 2)  # in threes: 3 x 256 is a multiple of 96
    rounds, results, figures = given or rounds, [], []
    for name, batch in BATCHES.items():
        data = build_datamodule(configuration(*settings(name, steps)))
        images, targets = arrays(data, "train")
        libraries = [
            Library(torch_rounds, name, steps),
            Library(plain_rounds, name, steps, full and not avx2_alone()),  # compiled, it dies of a C++ exception there
            Library(keras_rounds, name, images, targets),
        ]
        seconds = in_turns(libraries, rounds)
        work = f"{name}, batch {batch}"
        peers = [who for who in seconds if not who.startswith(("cnnlab", "by hand"))]
        for label in precisions():
            among = [who for who in peers if FLOAT32 in who] if label == FLOAT32 else peers
            for other, asked in ((best(seconds, among), 1.0 if label == FLOAT32 else 1.5), (f"by hand, {label}", 0.97)):
                results.append(compared(seconds, f"{work}, {label} precision", f"cnnlab, {label}", other, asked))
        figures += [
            {"network": name, "contestant": who, "images/s (median)": f"{len(images) / median(took):,.0f}"}
            for who, took in sorted(seconds.items(), key=lambda pair: median(pair[1]))
        ]
    return results, figures


if __name__ == "__main__":
    command("training", measure, __doc__)
