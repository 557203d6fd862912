"""A run of two processes: every image counted once, one folder, one voice, and no process left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cnnlab.api import Run
from cnnlab.data.datamodule import SeededBatchSampler
from cnnlab.utils.checkpoints import load_checkpoint
from cnnlab.utils.io import read_csv
from tests.conftest import TINY_LINES, run_train

pytestmark = pytest.mark.slow

WORDS = (
    "experiment=multihead",
    *TINY_LINES,
    "data.batch_size=96",
    "net.dropout=0.0",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
)


def test_processes_share_out_the_batches_of_one() -> None:
    alone = list(SeededBatchSampler(11, batch_size=4, seed=3))
    assert [len(batch) for batch in alone] == [4, 4, 3]
    shares = [SeededBatchSampler(11, batch_size=4, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[len(batch) for batch in share] for share in shares] == [[2, 2, 1], [2, 2, 1]]
    assert [len(share) for share in shares] == [3, 3]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.stack(parts, dim=1).flatten().tolist() == batch.tolist()[: 2 * len(parts[0])]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes, and what it said."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    command = [sys.executable, "-m", "cnnlab.train", *WORDS, "trainer=ddp", f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_image_is_counted_once(two: tuple[Path, str]) -> None:
    run = Run(two[0])
    data = run.datamodule()
    net = run.net
    best = read_csv(run.path / "metrics.csv")[run.summary["best_epoch"] - 1]
    for stage, validated in (("val", best), ("test", None)):
        split = data.splits[stage]
        images, targets = split.batch(torch.arange(len(split)))
        with torch.no_grad():
            logits = net(images)
        for head in data.heads:
            right = (head.predict(logits[head.name]) == targets[head.name]).float().mean().item()
            said = validated or {f"test/{k}/acc": v["accuracy"] for k, v in run.summary["test"]["heads"].items()}
            assert said[f"{stage}/{head.name}/acc"] == pytest.approx(right, abs=1e-6)


def test_the_best_epoch_is_chosen_by_the_images_of_all_processes(two: tuple[Path, str]) -> None:
    best = load_checkpoint(two[0] / "checkpoints" / "best.ckpt")
    (state,) = (s for s in best["callbacks"].values() if s.get("monitor") in ("val/acc", "val/loss"))
    row = read_csv(two[0] / "metrics.csv")[best["epoch"]]
    assert state["best_model_score"].item() == pytest.approx(row[state["monitor"]])
    right = row["val/acc"] * 192  # of all 192 validation images
    assert right == pytest.approx(round(right), abs=1e-3)


def test_two_processes_take_the_steps_of_one(two: tuple[Path, str], tmp_path: Path) -> None:
    one = read_csv(run_train(tmp_path / "one", *WORDS) / "metrics.csv")
    both = read_csv(two[0] / "metrics.csv")
    for row, other in zip(one, both, strict=True):  # BatchNorm sees half a batch, all else is the same
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=0.1)
        assert row["lr"] == other["lr"]


def test_there_is_one_folder_and_one_voice(two: tuple[Path, str]) -> None:
    folder, said = two
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    assert said.count("epoch 1/2") == said.count("epoch 2/2") == said.count("all heads right") == 1
    assert "2 processes" in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_torchrun_starts_the_same_run(two: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "cnnlab.train"]
    command = [*torchrun, *WORDS, "trainer=ddp", f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == done.stdout.count("all heads right") == 1
    timed = ("seconds", "val_seconds")
    one, other = (read_csv(path / "metrics.csv") for path in (two[0], folder))
    assert [{**row, **dict.fromkeys(timed)} for row in one] == [{**row, **dict.fromkeys(timed)} for row in other]
    assert json.loads((folder / "summary.json").read_text())["test"] == Run(two[0]).summary["test"]


def test_a_signal_ends_both(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*WORDS, "trainer=ddp", "trainer.max_epochs=500", f"hydra.run.dir={folder}"]
    process = subprocess.Popen([sys.executable, "-m", "cnnlab.train", *words], stdout=subprocess.DEVNULL)
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    deadline = time.monotonic() + 300
    while any(_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=0"], "trainer: "),
        (["trainer=ddp", "data.batch_size=95"], "data.batch_size=95 cannot be shared out to 2 processes"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        run_train(tmp_path / "run", *WORDS, *words)
