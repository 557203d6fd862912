"""Any torchvision set: shapes, classes and sizes come from it; what cannot be had is one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision import datasets
from torchvision.transforms import Compose, PILToTensor, Resize

from cnnlab.data.torchvision_data import TorchvisionDataModule, stratified_order
from cnnlab.training.build import build_datamodule
from cnnlab.utils.cli import CONF
from cnnlab.utils.errors import UserError

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
    images, targets = data.splits["test"].batch(torch.arange(3))
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
    known = {PILToTensor()(image).numpy().tobytes(): label for image, label in (COLOURED()[i] for i in range(40))}
    for name in data.names:
        rows = torch.arange(len(data.splits[name]))
        images, targets = data.splits[name].images(rows), data.splits[name].targets(rows)["class"]
        assert [known[image.numpy().tobytes()] for image in images] == targets.tolist()
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


def _folder(root: Path, counts: dict[str, int]) -> partial[datasets.ImageFolder]:
    """Folders of `counts` images, a folder a class, each image with a number of its own."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (place, number // 256, number % 256)).save(root / name / f"{number}.png")
    return partial(datasets.ImageFolder, str(root))


def _counts(data: TorchvisionDataModule, name: str, first: int | None = None) -> list[int]:
    rows = torch.arange(first or len(data.splits[name]))
    return data.splits[name].targets(rows)["class"].bincount(minlength=len(data.heads[0].classes)).tolist()


def test_a_sorted_set_is_split_by_class(tmp_path: Path) -> None:
    train = _folder(tmp_path / "train", {name: 150 for name in "abcd"})
    test = _folder(tmp_path / "test", {name: 20 for name in "abcd"})
    data = TorchvisionDataModule(train, test, val_size=60, train_size=200, test_size=40)
    data.setup()
    assert [_counts(data, name) for name in data.names] == [[50] * 4, [15] * 4, [10] * 4]
    assert data.counts()["distinct_train"] + data.counts()["distinct_val"] == 260  # no image in both
    for name in ("train", "val"):  # so is any first part, as trainer.limit_val_batches takes it
        assert _counts(data, name, 8) == [2] * 4
    red = data.splits["val"].images(torch.arange(60))[:, 2, 0, 0].tolist()
    assert sorted(red) != list(range(90, 105)) * 4  # not the last of each class

    again, other = (TorchvisionDataModule(train, test, val_size=60, split_seed=seed) for seed in (0, 1))
    again.setup("fit")
    other.setup("fit")
    rows = torch.arange(60)
    assert torch.equal(again.splits["val"].images(rows), data.splits["val"].images(rows))
    assert not torch.equal(other.splits["val"].images(rows), data.splits["val"].images(rows))


def test_classes_of_unlike_sizes_keep_their_shares() -> None:
    classes = torch.tensor([0] * 600 + [1] * 300 + [2] * 97 + [3] * 3)
    order = stratified_order(classes, seed=0)
    assert order.sort().values.tolist() == list(range(1000))
    assert classes[order[:100]].bincount().tolist() == pytest.approx([60, 30, 10, 1], abs=1)
    assert classes[order[:4]].bincount().tolist() == [1] * 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val_size": 3}, "the val split of 3 images has none of class '.'; raise data.val_size"),
        ({"val_size": 8, "train_size": 3}, "the train split of 3 images has none of class '.'"),
        ({"val_size": 8, "test_size": 2}, "the test split of 2 images has none of class '.'"),
    ],
)
def test_a_split_without_a_class_is_refused(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    train = _folder(tmp_path / "train", {name: 10 for name in "abcd"})
    with pytest.raises(UserError, match=message):
        TorchvisionDataModule(train, train, **sizes).setup()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "message"),
    [("abc", "the same classes: d"), ("abcde", "the same classes: e"), ("abcx", "the same classes: d, x")],
)
def test_classes_of_the_test_set_are_those_of_the_training_set(test: str, message: str, tmp_path: Path) -> None:
    sets = _folder(tmp_path / "train", dict.fromkeys("abcd", 4)), _folder(tmp_path / "test", dict.fromkeys(test, 4))
    with pytest.raises(UserError, match=message):
        TorchvisionDataModule(*sets, val_size=4).setup("fit")  # before the training begins


def test_classes_in_another_order_are_refused() -> None:
    class Named(datasets.FakeData):
        def __init__(self, names: str, transform: Any = None) -> None:
            super().__init__(size=20, image_size=(3, 8, 8), num_classes=2, transform=transform)
            self.classes = list(names)

    with pytest.raises(UserError, match="the same classes: the same in another order"):
        TorchvisionDataModule(partial(Named, "ab"), partial(Named, "ba"), val_size=4).setup("fit")


@pytest.mark.parametrize("names", [None, ("left", "right")])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda y: y + 1, "labels from 1 to 2"),
        (lambda y: 2 * y - 1, "labels from -1 to 1"),
        (lambda y: 3 * y, "labels from 0 to 3"),
        (float, "labels like [01].0, not one whole number"),
        (str, "labels like '[01]', not one whole number"),
        (lambda y: (y, y), "not one whole number for each image"),
        (lambda y: 0, "one class only|none of class 'right'; the data has none"),
    ],
)
def test_labels_that_do_not_number_the_classes_are_one_line(label: Any, message: str, names: Any) -> None:
    class Labelled(datasets.FakeData):
        classes = names

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], label(index % 2)

    make = partial(Labelled, size=20, image_size=(3, 8, 8))
    with pytest.raises(UserError, match=message) as error:
        TorchvisionDataModule(make, make, val_size=4).setup("fit")
    assert "\n" not in str(error.value)


def test_images_of_two_sizes_are_refused() -> None:
    large = partial(datasets.FakeData, size=40, image_size=(3, 40, 40), num_classes=4)
    with pytest.raises(UserError, match=r"test images are \(3, 40, 40\), training images \(3, 32, 32\)"):
        TorchvisionDataModule(COLOURED, large, val_size=10).setup()
