"""Kill a training at random moments, resume it each time, and see that it ends as one that was left alone.

python -m tests.kill 20     prints how many kills were survived of those tried
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from cnnlab.utils.checkpoints import checkpoint_path, last_valid_checkpoint, load_checkpoint
from tests.conftest import TINY_LINES, run_train

EVERY_STEP = (
    "callbacks.interval_checkpoint.every_n_train_steps=1",
    "callbacks.interval_checkpoint.train_time_interval=null",
)
PLAIN = ("experiment=multihead", *TINY_LINES, "data.batch_size=96", "trainer.max_epochs=12", *EVERY_STEP)
VARIANTS = (  # whatever has a state of its own, or is drawn at random
    ("weighting=uncertainty",),
    ("weighting=dynamic_weight_average", "lr_scheduler=plateau", "lr_scheduler.scheduler.patience=0"),
    ("weighting=report_a", "lr_scheduler=every_epoch", "augment=affine"),
    ("data.resample_each_epoch=true", "data.num_workers=1", "trainer.max_epochs=4"),
    ("trainer.limit_train_batches=4", "trainer.accumulate_grad_batches=2"),
    ("callbacks=[default,ema]", "lr_scheduler=inverse_time", "trainer.gradient_clip_val=1"),
)
WORDS = (*PLAIN, *VARIANTS[0])
# A process with torch imported and nothing run yet, of which each training is a copy.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cnnlab.reporting.run_report", "tests.conftest"])


def _train(folder: Path, words: tuple[str, ...]) -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    run_train(folder, *words)


def _start(folder: Path, words: tuple[str, ...] = WORDS) -> multiprocessing.process.BaseProcess:
    """Train into `folder`, from where it stands."""
    begun = (folder / "config.yaml").exists()
    if not begun and folder.exists():
        shutil.rmtree(folder)
    if begun:
        words = (f"resume={folder}",)
    process = CONTEXT.Process(target=_train, args=(folder.parent / "unused" if begun else folder, words))
    process.start()
    return process


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[list[str]], dict[str, object]]:
    """The last weights, `metrics.csv` without its seconds, and the test results."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(rows[0]) if not name.endswith("seconds")]
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    test = json.loads((folder / "summary.json").read_text())["test"]
    return state, [[row[place] for place in kept] for row in rows], test


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended alike to the bit."""
    (weights, rows, test), (others, other_rows, other_test) = outcome(first), outcome(second)
    equal = weights.keys() == others.keys() and all(torch.equal(weights[k], others[k]) for k in weights)
    return equal and rows == other_rows and test == other_test and _schedule(first) == _schedule(second)


def _schedule(folder: Path) -> list[dict[str, object]]:
    """The states of the learning rate's schedulers in the last checkpoint."""
    states: list[dict[str, object]] = load_checkpoint(folder / "checkpoints" / "last.ckpt")["lr_schedulers"]
    return states


def _steps(folder: Path) -> int:
    """The steps of the newest checkpoint; 0 where there is none."""
    path, _ = last_valid_checkpoint(folder)
    return 0 if path is None else int(load_checkpoint(path)["global_step"])


def survive(kills: int, parent: Path, seed: int, words: tuple[str, ...] = WORDS) -> tuple[list[int], bool]:
    """Kill one training `kills` times at random moments: at which steps the kills found it, and whether it
    ended as one that was left alone."""
    draw = random.Random(seed)
    whole, cut = parent / "whole", parent / "cut"
    process = _start(whole, words)
    while not (whole / "config.yaml").exists():
        time.sleep(0.005)  # the first has waited for torch
    start = time.monotonic()
    process.join()
    usual = time.monotonic() - start
    found = []
    while len(found) < kills:
        last, within = checkpoint_path(cut, "last"), draw.random() < 0.75
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = _start(cut, words)
        # Most find it in its training, the others wherever it is: while it begins, tests, or writes its report.
        while within and process.is_alive() and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.005)
        process.join(draw.uniform(0, 0.2 if within else 0.5) * usual)
        if not process.is_alive():  # it was faster: begin anew, and kill that one
            shutil.rmtree(cut)
            continue
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found.append(_steps(cut))
    _start(cut, words).join()
    return found, same(whole, cut)


if __name__ == "__main__":
    wanted, tried, survived, seed = int(sys.argv[1]), 0, 0, 0
    while tried < wanted:
        with tempfile.TemporaryDirectory() as parent:
            variant = VARIANTS[seed % len(VARIANTS)]
            steps, equal = survive(min(4, wanted - tried), Path(parent), seed, (*PLAIN, *variant))
        tried, survived, seed = tried + len(steps), survived + len(steps) * equal, seed + 1
        end = "ended bit for bit as a run left alone" if equal else "ended differently"
        print(f"{' '.join(variant)}: killed after steps {steps}: {end}", flush=True)
    print(f"survived {survived} of {tried} kills")
    sys.exit(survived < tried)
