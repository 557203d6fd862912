"""Any torchvision set: shapes, classes and sizes come from it; what cannot be had is one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torchvision import datasets
from torchvision.transforms import Compose, PILToTensor, Resize

from cnnlab.build import build_datamodule
from cnnlab.cli import CONF
from cnnlab.data.vision import TorchvisionDataModule
from cnnlab.errors import UserError

COLOURED = partial(datasets.FakeData, size=40, image_size=(3, 32, 32), num_classes=4)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_a_yaml_file_is_enough_for_a_relative_of_mnist(name: str, digits: tuple[str, ...], tmp_path: Path) -> None:
    (root,) = (word.partition("=")[2] for word in digits if word.startswith("data.root"))
    (tmp_path / "KMNIST").symlink_to(Path(root) / "FashionMNIST")
    (tmp_path / "FashionMNIST").symlink_to(Path(root) / "FashionMNIST")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=mnist", f"data={name}", f"data.root={tmp_path}", "data.val_size=100"])
    data = build_datamodule(cfg)
    assert data.image_shape == (1, 28, 28)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 300, "val": 100, "test": 256}
    (head,) = data.heads
    assert (head.name, len(head.classes)) == ({"fashion_mnist": "article", "kmnist": "character"}[name], 10)
    images, targets = data.splits["test"][torch.arange(3)]
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert targets[head.name].tolist() == [0, 1, 2]
    assert images[2, 0, 4 + 2 * 2, 4:24].tolist() == pytest.approx([250 / 255] * 20)


def test_shape_and_classes_come_from_the_data_set() -> None:
    data = TorchvisionDataModule(COLOURED, COLOURED, val_size=10)
    data.prepare_data()
    data.setup()
    assert data.image_shape == (3, 32, 32)
    assert data.heads[0].classes == ("0", "1", "2", "3")
    assert [len(data.splits[name]) for name in data.names] == [30, 10, 40]
    pixels = torch.stack([PILToTensor()(COLOURED()[i][0]) for i in (0, 29)])
    assert torch.equal(data.splits["train"].images(torch.tensor([0, 29])), pixels)
    assert data.splits["train"].truths(torch.tensor([0]), data.heads[0]) == {}


def test_a_transform_of_the_users_own_is_used() -> None:
    small = partial(COLOURED, transform=Compose([Resize(16), PILToTensor()]))
    data = TorchvisionDataModule(small, small, val_size=0)
    data.setup("fit")
    assert data.image_shape == (3, 16, 16)
    assert not data.has_validation
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val_size": -1}, "data.val_size=-1 is too small"),
        ({"train_size": 0}, "data.train_size=0 is too small"),
        ({"val_size": 40}, "data.train_size=0 and data.val_size=40 do not fit: there are 40 training images"),
        ({"train_size": 31, "val_size": 10}, "do not fit"),
        ({"val_size": 10, "test_size": 41}, "data.test_size=41: there are 40 test images"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TorchvisionDataModule(COLOURED, COLOURED, **sizes).setup()  # type: ignore[arg-type]


def test_images_of_no_fixed_form_are_refused() -> None:
    floats = partial(COLOURED, transform=lambda image: PILToTensor()(image).float())
    with pytest.raises(UserError, match=r"FakeData gives torch.float32 \(3, 32, 32\), not uint8"):
        TorchvisionDataModule(floats, floats).setup()


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (datasets.FashionMNIST, r"train-images-idx3-ubyte.gz, .* into .*FashionMNIST/raw"),
        (datasets.CIFAR10, "put cifar-10-python.tar.gz into "),
    ],
)
def test_what_cannot_be_fetched_says_which_files_to_put_where(
    kind: type[datasets.VisionDataset], files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    make = partial(kind, root=str(tmp_path))
    data = TorchvisionDataModule(make, make, root=str(tmp_path))
    with pytest.raises(UserError, match=f"could not be fetched or read .*{files}") as error:
        data.prepare_data()
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    make = partial(datasets.FashionMNIST, root=str(blocked))
    with pytest.raises(UserError, match=r"cannot keep FashionMNIST in .*data\.root"):
        TorchvisionDataModule(make, make, root=str(blocked)).prepare_data()


def test_a_torn_file_is_one_line(digits: tuple[str, ...], tmp_path: Path) -> None:
    (root,) = (word.partition("=")[2] for word in digits if word.startswith("data.root"))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (Path(root) / "FashionMNIST" / "raw").iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[:5000])
    make = partial(datasets.FashionMNIST, root=str(tmp_path))
    data = TorchvisionDataModule(make, make, root=str(tmp_path), val_size=0)
    with pytest.raises(UserError, match="FashionMNIST"):
        data.prepare_data()
