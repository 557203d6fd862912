"""How long a command takes to answer, and to finish its first batch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research.performance.side_by_side import Result, command

TRAIN = [sys.executable, "-m", "cnnlab.train"]
ANSWERS = {"--help": ["--help"], "a typo": ["experiment=multihed"], "--cfg job": ["--cfg", "job"]}


def _answer(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([*TRAIN, *words], capture_output=True, check=False)
    return time.perf_counter() - start


def _first_batch() -> float:
    """From the command to the checkpoint that is written after the first step."""
    with tempfile.TemporaryDirectory() as folder:
        interval = "callbacks.interval_checkpoint"
        words = ["experiment=multihead", f"{interval}.every_n_train_steps=1", f"{interval}.train_time_interval=null"]
        start = time.perf_counter()
        process = subprocess.Popen([*TRAIN, *words, f"hydra.run.dir={folder}/run"], stdout=subprocess.DEVNULL)
        while not (Path(folder) / "run" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
            assert process.poll() is None, "the training ended before its first batch"
        seconds = time.perf_counter() - start
        process.terminate()
        process.wait()
        return seconds


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    rounds = given or (9 if full else 3)
    answers: dict[str, list[float]] = {name: [] for name in ANSWERS}
    batches = []
    for _ in range(rounds):
        for name, words in ANSWERS.items():
            answers[name].append(_answer(words))
        batches.append(_first_batch())
    results = [Result(name, "the clock", took, at_most=2, unit="s") for name, took in answers.items()]
    return [*results, Result("first batch of multihead", "the clock", batches, at_most=8, unit="s")], []


if __name__ == "__main__":
    command("startup", measure, __doc__)
