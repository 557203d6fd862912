"""Whatever stops a run, it goes on from where it stood, and ends as one that was left alone."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from lightning.pytorch import Trainer

from cnnlab.launch import reserve_run_dir
from cnnlab.pipeline import locked
from cnnlab.training.checkpoint import VerifiedCheckpointIO
from cnnlab.training.classifier import Classifier
from cnnlab.utils.checkpoints import checkpoint_path, last_valid_checkpoint, load_checkpoint
from cnnlab.utils.errors import Diverged, UserError
from tests import kill
from tests.conftest import TINY_LINES, run_train

pytestmark = pytest.mark.slow


def test_a_run_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    steps, equal = kill.survive(4, tmp_path, seed=7)
    assert equal
    assert any(step % 6 for step in steps)  # not only between epochs, which have 6 steps


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(number: int, status: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [
        *kill.WORDS,
        "trainer.max_epochs=500",
        "callbacks.interval_checkpoint.every_n_train_steps=10000",
        f"hydra.run.dir={folder}",
    ]
    command = [sys.executable, "-m", "cnnlab.train", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert f"interrupted; go on with: python -m cnnlab.train resume={folder}" in printed
    assert "Traceback" not in printed
    steps = load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    rows = (folder / "metrics.csv").read_text().count("\n") - 1
    assert steps >= 6 * rows  # it went on after the last whole epoch of 6 steps


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed at the end of its second epoch, with two checkpoints from within it."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from cnnlab.training.callbacks import MetricsHistory; from tests.conftest import run_train\n"
        "start = MetricsHistory.on_validation_start\n"
        "MetricsHistory.on_validation_start = lambda s, t, m: os._exit(9) if t.current_epoch == 1 else start(s, t, m)\n"
        "run_train(Path(sys.argv[1]), *sys.argv[2:])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), *kill.WORDS], check=False, capture_output=True)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "best.ckpt", "last.ckpt", "previous.ckpt",
    }  # fmt: skip
    return folder


@pytest.fixture
def cut(killed: Path, tmp_path: Path) -> Path:
    """A copy of that run, to go on with."""
    return shutil.copytree(killed, tmp_path / "cut")


def _within_a_tensor(content: bytes) -> int:
    """A place in the middle of the largest record: between records the file has bytes that nobody reads."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    return largest.header_offset + largest.file_size // 2


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 2],
    "flipped": lambda content: _flipped(content, _within_a_tensor(content)),
    "empty": lambda _: b"",
    "text": lambda _: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_noticed(damage: str, cut: Path) -> None:
    last, previous = (cut / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    assert last_valid_checkpoint(cut) == (last, [])
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    assert last_valid_checkpoint(cut) == (previous, [last])


def test_the_checkpoint_before_is_used(cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = cut / "checkpoints" / "last.ckpt"
    last.write_bytes(DAMAGES["torn"](last.read_bytes()))
    run_train(tmp_path / "unused", f"resume={cut}")
    printed = capsys.readouterr().out
    assert f"{last} is broken; going on from {cut}/checkpoints/previous.ckpt" in printed
    whole = run_train(tmp_path / "whole", *kill.WORDS)
    assert kill.same(whole, cut)


def test_without_any_whole_checkpoint_nothing_is_lost(cut: Path, tmp_path: Path) -> None:
    for name in ("last", "previous"):
        (cut / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"last.ckpt is broken and there is none before it"):
        run_train(tmp_path / "unused", f"resume={cut}")
    assert (cut / "checkpoints" / "best.ckpt").exists()
    shutil.rmtree(cut / "checkpoints")
    run_train(tmp_path / "unused", f"resume={cut}")  # from the beginning
    assert json.loads((cut / "summary.json").read_text())["status"] == "finished"
    assert not (cut / "checkpoints" / "previous.ckpt").exists()


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/should-never-be",)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    last = checkpoint_path(tmp_path, "last")
    last.parent.mkdir()
    torch.save({"state_dict": {}, "code": _Evil()}, last)
    with pytest.raises(UserError, match="is broken or no checkpoint of plain tensors"):
        load_checkpoint(last)
    torch.save({"weights": torch.ones(2)}, last)
    with pytest.raises(UserError, match="it holds no weights"):
        load_checkpoint(last)
    assert last_valid_checkpoint(tmp_path) == (None, [last])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match=r"error: step \d+: .*; lower optimizer.lr") as stopped:
        run_train(folder, *kill.WORDS, "optimizer.lr=1e30", "lr_scheduler=constant")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"].partition(";")[0] in str(stopped.value)
    if (folder / "checkpoints").exists():  # nothing bad was kept
        state = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def _limited(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Train where no file may be larger than 100 kB, as on a disk that is full: a checkpoint is larger."""
    code = (
        "import resource, sys; from pathlib import Path; from tests.conftest import run_train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run_train(Path(sys.argv[1]), *sys.argv[2:])"
    )
    command = [sys.executable, "-c", code, str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_is_one_clear_line_and_takes_nothing_away(cut: Path) -> None:
    before = {path.name: path.read_bytes() for path in (cut / "checkpoints").iterdir()}
    done = _limited(cut.parent / "unused", f"resume={cut}")
    assert done.returncode == 1
    assert re.search(r"^error: cannot write to .*File too large", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in (cut / "checkpoints").iterdir()} == before
    assert json.loads((cut / "summary.json").read_text())["status"] == "failed"


def _in_a_tmpfs(folder: Path, size: str, then: str) -> subprocess.CompletedProcess[str]:
    """Run `then` with a tmpfs of that size at `folder`, in a mount namespace of its own; skip the test where
    the system does not allow that."""
    folder.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-e", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    if sys.platform != "linux" or subprocess.run([*alone, mount], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace to be had")
    return subprocess.run([*alone, f"{mount}\n{then}"], capture_output=True, text=True, check=False)


def test_a_disk_that_is_full_indeed_takes_nothing_away(cut: Path, tmp_path: Path) -> None:
    disk, after = tmp_path / "disk", tmp_path / "after"
    before = {path.name: path.read_bytes() for path in (cut / "checkpoints").iterdir()}
    size = sum(path.stat().st_size for path in cut.rglob("*") if path.is_file()) + 400_000
    done = _in_a_tmpfs(
        disk,
        str(size),
        f"cp -r {cut} {disk}/run\n"
        f"{sys.executable} -m cnnlab.train resume={disk}/run hydra.run.dir={tmp_path}/unused || status=$?\n"
        f"cp -r {disk}/run {after}\nexit $status",
    )
    assert done.returncode == 1, done.stderr
    said = re.search(r"^error: cannot write to (\S+) \(No space left on device\)", done.stderr, re.MULTILINE)
    assert said, done.stderr
    assert said[1].startswith(f"{disk}/run/")  # the run's own file, not one beside it
    assert not Path(said[1]).name.startswith(".")
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in (after / "checkpoints").iterdir()} == before
    summary = after / "summary.json"  # there was no room for one, or it says what happened
    assert not summary.exists() or json.loads(summary.read_text())["status"] == "failed"


def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = _in_a_tmpfs(
        disk,
        "1m",
        f"mount -o remount,ro {disk}\n"
        f"exec {sys.executable} -m cnnlab.train hydra.run.dir={disk}/run {' '.join(kill.WORDS)}",
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write to {disk}/run (Read-only file system)"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_goes_away_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*kill.WORDS, "trainer.max_epochs=500", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnlab.train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.02)
    folder.rename(tmp_path / "elsewhere")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.startswith(f"error: cannot write to {folder}")
    assert said.count("\n") == 1
    assert not folder.exists()


def test_a_checkpoint_does_not_make_a_run_folder_anew(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "checkpoints" / "last.ckpt"
    with pytest.raises(FileNotFoundError):
        VerifiedCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 0}, gone)
    assert not (tmp_path / "gone").exists()


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    bad = {"state_dict": {"net.weight": torch.tensor([1.0, torch.nan])}, "global_step": 7}
    with pytest.raises(Diverged, match=r"step 7: weights of net.weight are no longer finite"):
        VerifiedCheckpointIO().save_checkpoint(bad, path)
    assert not path.exists()


def test_two_resumes_at_once_do_not_write_over_each_other(cut: Path) -> None:
    words = [f"resume={cut}", "trainer.max_epochs=500"]
    first = subprocess.Popen(
        [sys.executable, "-m", "cnnlab.train", *words, f"hydra.run.dir={cut.parent}/one"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=cut.parent,
    )
    assert first.stdout is not None
    while "epoch" not in first.stdout.readline():
        assert first.poll() is None
    with pytest.raises(SystemExit, match=r"another process is training in .*; wait for it, or end it"):
        run_train(cut.parent / "two", *words)
    first.kill()  # the kernel gives the lock back
    first.communicate(timeout=300)
    with locked(cut):
        pass


def test_of_runs_that_want_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    together = Barrier(8)

    def want(_: int) -> bool:
        together.wait()
        try:
            reserve_run_dir(tmp_path)
        except UserError:
            return False
        return True

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(want, range(8))) == 1
        (tmp_path / "log.txt").unlink()


SMALL = ("experiment=multihead", *TINY_LINES, "data.batch_size=96", "net.dropout=0.0")
COLLECT = "lightning.pytorch.callbacks.GradientAccumulationScheduler"
COLLECTED = "+callbacks.collect.scheduling={0:1,1:2}"
STOPS = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1")


@pytest.mark.parametrize(
    ("owner", "method", "calls", "words"),
    [
        # Stopped early after two epochs of six, and broken off before the test.
        (Trainer, "test", 1, (*STOPS, "callbacks.early_stopping.min_delta=100", "trainer.max_epochs=6")),
        # In the second validation of an epoch of six steps.
        (Classifier, "on_validation_epoch_start", 2, ("trainer.val_check_interval=2",)),
        # Within an epoch that has the same few batches each time.
        (Classifier, "training_step", 3, ("trainer.overfit_batches=4",)),
        # Within the second epoch, which collects the gradients of two batches for a step.
        (Classifier, "training_step", 10, (f"+callbacks.collect._target_={COLLECT}", COLLECTED)),
    ],
)
def test_a_run_that_breaks_off_there_ends_as_one_left_alone(
    owner: type, method: str, calls: int, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNLAB_TRUST", "lightning")
    every_step = "callbacks.interval_checkpoint.every_n_train_steps=1"
    whole, cut = run_train(tmp_path / "whole", *SMALL, *words, every_step), tmp_path / "cut"
    original, counted = getattr(owner, method), itertools.count(1)

    def breaks_off(*arguments: object, **more: object) -> object:
        if next(counted) == calls:
            raise RuntimeError("the power is gone")
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, breaks_off)
        with pytest.raises(RuntimeError, match="the power is gone"):
            run_train(cut, *SMALL, *words, every_step)
    run_train(tmp_path / "unused", f"resume={cut}")
    assert kill.same(whole, cut)
    best = [load_checkpoint(checkpoint_path(folder, "best"))["global_step"] for folder in (whole, cut)]
    assert best[0] == best[1]
