"""What a training run needs as it grows: images a second and peak memory of the command, against the batch, the
threads, the number of images drawn, and the processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from research.performance.side_by_side import Result, command

BATCHES = (32, 64, 128, 256, 512, 1024, 2048)
PER_CLASS = (75, 750, 7500)  # images of each of 96 kinds
FIXED = ("experiment=multihead_report_b", "trainer.max_epochs=1", "data.val_per_class=1", "data.test_per_class=1")

DDP = ("trainer=ddp", "trainer.devices=2")


def run(words: list[str], threads: int) -> tuple[float, float]:
    """Images a second in the steps of a command's training, and the peak memory of its largest process in GB."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "cnnlab.train", *FIXED, *words, f"hydra.run.dir={folder}/run"],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"{words} failed"
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text(encoding="utf-8"))
    return summary["images_per_second"], used.ru_maxrss / 1e6


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    cores = os.cpu_count() or 1
    points = [
        *(("batch", f"{size}", [f"data.batch_size={size}", "data.train_per_class=300"], cores) for size in BATCHES),
        *(("threads", f"{count}", ["data.train_per_class=300"], count) for count in range(1, cores + 1)),
        *(("images drawn", f"{96 * count:,}", [f"data.train_per_class={count}"], cores) for count in PER_CLASS),
        *(
            ("processes of one thread", f"{count}", ["data.train_per_class=300", *(DDP if count > 1 else ())], 1)
            for count in (1, 2)
        ),
    ]
    if not full:
        points = [("batch", "256", ["data.batch_size=256", "data.train_per_class=30"], cores)]
    rounds = given or (3 if full else 1)
    took = [[run(words, threads) for _, _, words, threads in points] for _ in range(rounds)]
    return [], [
        {
            "what grows": what,
            "to": value,
            "images/s (median)": f"{median(one[place][0] for one in took):,.0f}",
            "peak memory, GB": f"{median(one[place][1] for one in took):.2f}",
        }
        for place, (what, value, _, _) in enumerate(points)
    ]


if __name__ == "__main__":
    command("scale", measure, __doc__)
