"""Your own pictures: folders of classes, given splits, tables with several heads; what is wrong is one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cnnlab
from cnnlab.api import Run
from cnnlab.data.image_folder import ImageFolderDataModule
from cnnlab.utils.errors import UserError
from tests.conftest import in_process, run_train

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
MODES = ("RGB", "RGBA", "P", "RGB")


def _draw(file: Path, colour: str, number: int) -> None:
    """Save a picture with one colour, black in one pixel; sizes, modes and formats differ."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12 + number % 5, 10 + number % 7, 3), COLOURS[colour], np.uint8)
    pixels[number % 12, number % 10] = 0
    Image.fromarray(pixels).convert(MODES[number % 4]).save(file)


def make_folders(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    for colour, count in counts.items():
        for number in range(first, first + count):
            _draw(root / colour / f"{number}.{'bmp' if number % 4 == 3 else 'png'}", colour, number)
    return root


def test_folders_are_classes_and_each_split_holds_its_share(tmp_path: Path) -> None:
    data = ImageFolderDataModule(str(make_folders(tmp_path, {"red": 40, "green": 20, "blue": 20})), size=16)
    data.setup("fit")
    (head,) = data.heads
    assert (head.name, head.classes) == ("class", ("blue", "green", "red"))
    assert data.image_shape == (3, 16, 16)
    shares = {name: split.targets(torch.arange(len(split)))["class"].bincount() for name, split in data.splits.items()}
    assert shares["test"].tolist() == [3, 3, 6]  # 15 % of 20, 20 and 40
    assert shares["val"].tolist() == [3, 3, 6]
    assert shares["train"].tolist() == [14, 14, 28]
    files = [file for split in data.splits.values() for file in split.files]  # type: ignore[attr-defined]
    assert len(files) == len(set(files)) == 80
    images, targets = data.splits["train"].batch(torch.arange(56))
    brightest = images[:, :, 4:12, 4:12].mean(dim=(2, 3)).argmax(dim=1)  # red, green, blue
    assert torch.equal(2 - brightest, targets["class"])
    again = ImageFolderDataModule(str(tmp_path), size=16, seed=7)
    again.setup()
    assert again.splits["test"].files == data.splits["test"].files  # type: ignore[attr-defined]


def test_rare_classes_do_not_fill_the_test_split(tmp_path: Path) -> None:
    counts = {"red": 200, "blue": 3, "green": 3}
    data = ImageFolderDataModule(str(make_folders(tmp_path, counts)), size=16)
    data.setup()
    tested = data.splits["test"].targets(torch.arange(len(data.splits["test"])))["class"].bincount(minlength=3).tolist()
    assert tested[2] == 30
    assert max(tested[:2]) <= 1
    before = {file.name for file in data.splits["test"].files if file.parent.name == "red"}  # type: ignore[attr-defined]
    _draw(tmp_path / "red" / "new.png", "red", 0)
    data = ImageFolderDataModule(str(tmp_path), size=16)
    data.setup()
    after = {file.name for file in data.splits["test"].files if file.parent.name == "red"}  # type: ignore[attr-defined]
    assert len(before - after) <= 1  # a new picture does not draw the split anew


def test_other_names_of_splits(tmp_path: Path) -> None:
    for name, first in (("Training", 0), ("Valid", 100), ("Testing", 200)):
        make_folders(tmp_path / name, {"red": 4, "blue": 4}, first)
    make_folders(tmp_path / ".ipynb_checkpoints", {"green": 2})
    data = ImageFolderDataModule(str(tmp_path), size=16)
    data.setup()
    assert data.heads[0].classes == ("blue", "red")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 8, "test": 8}


def test_given_splits_are_kept(tmp_path: Path) -> None:
    make_folders(tmp_path / "train", {"red": 20, "blue": 20})
    make_folders(tmp_path / "test", {"red": 3, "blue": 2}, first=100)
    data = ImageFolderDataModule(str(tmp_path), val_share=0.1, size=16)
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 36, "val": 4, "test": 5}
    data = ImageFolderDataModule(str(tmp_path), val_share=0.1, size=16, batch_size=35)
    data.setup()
    assert [len(images) for images, _ in data.train_dataloader()] == [35]  # BatchNorm may refuse a single picture
    make_folders(tmp_path / "val", {"red": 1, "blue": 1}, first=200)
    data = ImageFolderDataModule(str(tmp_path), size=16, channels=1)
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "val": 2, "test": 5}
    assert data.splits["val"][0][0].shape == (1, 16, 16)


def _table(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_table_gives_several_heads(tmp_path: Path) -> None:
    rows = []
    for number in range(48):
        colour, size = list(COLOURS)[number % 3], ("small", "large")[number // 3 % 2]
        _draw(tmp_path / "pictures" / f"{number}.png", colour, number)
        rows.append({"file": f"pictures/{number}.png", "colour": colour, "extent": size})
    _table(tmp_path, rows)
    data = ImageFolderDataModule(str(tmp_path), table="labels.csv", size=16, test_share=0.25)
    data.setup()
    assert [(head.name, head.classes) for head in data.heads] == [
        ("colour", ("blue", "green", "red")), ("extent", ("large", "small")),
    ]  # fmt: skip
    targets = data.splits["test"].targets(torch.arange(12))
    assert (targets["colour"] * 2 + targets["extent"]).bincount().tolist() == [2] * 6  # each combination its share
    marks = ("train", "Training", "validation", "test")
    _table(tmp_path, [{**row, "split": marks[number // 12]} for number, row in enumerate(rows)])
    data = ImageFolderDataModule(str(tmp_path), table="labels.csv", size=16)
    data.setup()
    assert [head.name for head in data.heads] == ["colour", "extent"]  # the split is no head
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 12, "test": 12}
    assert data.splits["val"].names([0]) == ["pictures/24.png"]


def test_a_run_on_pictures_opens_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "pictures", {"red": 24, "green": 24, "blue": 24})
    monkeypatch.chdir(tmp_path)
    words = ("data=folder", "data.root=pictures", "data.size=16", "trainer.max_epochs=2", "net.filters=[8,16]")
    folder = run_train(tmp_path / "run", *words)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = Run(folder)
    assert run.summary["data"]["overlap"] == 0
    assert run.predict(str(tmp_path / "pictures" / "red" / "0.png")).answers()
    in_process("explain", f"run={folder}", "method=saliency", "ascent.steps=1", "indices=[0]", "layers=[stem.conv]")
    assert (folder / "explain" / "1" / "index.html").is_file()


def test_grey_pictures_are_not_inverted(tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("L", (12, 12), 30 if name == "dark" else 220).save(tmp_path / name / f"{number}.png")
    data = ImageFolderDataModule(str(tmp_path), size=12, channels=1, batch_size=3)
    data.setup()
    images, targets = data.splits["train"].batch(torch.arange(len(data.splits["train"])))
    assert (images.mean(dim=(1, 2, 3)) * 255).round().tolist() == [[30, 220][k] for k in targets["class"].tolist()]


@pytest.mark.parametrize("other", ["bus", "validate"])
def test_train_is_a_split_if_it_holds_folders(other: str, tmp_path: Path) -> None:
    make_folders(tmp_path / "classes", {"red": 12, "green": 12})
    for colour, name in (("red", "train"), ("green", other)):
        (tmp_path / "classes" / colour).rename(tmp_path / "classes" / name)
    data = ImageFolderDataModule(str(tmp_path / "classes"), size=16, batch_size=4)
    data.setup()
    assert data.heads[0].classes == tuple(sorted(("train", other)))
    make_folders(tmp_path / "splits" / "train", {"red": 12, "green": 12})
    (tmp_path / "classes" / other).rename(tmp_path / "splits" / other)
    with pytest.raises(UserError, match=f"{other} is no split: beside train/ there are val/ and test/"):
        ImageFolderDataModule(str(tmp_path / "splits"), size=16).setup()


def test_a_small_run_is_audited_on_all_of_its_test_pictures(tmp_path: Path) -> None:
    make_folders(tmp_path / "pictures", {"red": 30, "green": 30})
    words = [f"data.root={tmp_path / 'pictures'}", "data.size=16", "net.filters=[8]", "trainer.max_epochs=1"]
    run = cnnlab.train(overrides=["data=folder", "seed=3", *words], folder=tmp_path / "run")
    assert (run.config.experiment, run.config.seed) == ("folder", 3)
    result = run.audit(["saliency"])
    assert result.images == len(run.test_split) < 100
    manifest = json.loads((result.save(tmp_path / "audit") / "manifest.json").read_text())
    assert manifest["verdicts"]["saliency"] == list(result.verdicts["saliency"])


def test_a_run_goes_on_with_the_same_pictures_only(tmp_path: Path) -> None:
    make_folders(tmp_path / "pictures", {"red": 12, "green": 12})
    words = ("experiment=folder", f"data.root={tmp_path / 'pictures'}", "data.size=16", "net.filters=[8]")
    folder = run_train(tmp_path / "run", *words, "trainer.max_epochs=1")
    old = tmp_path / "pictures" / "red" / "0.png"
    content = old.read_bytes()
    _draw(old, "red", 4)
    for change in ("another picture", "a new picture", "another class"):
        with pytest.raises(SystemExit, match="are not those that the run began with"):
            run_train(tmp_path / "unused", f"resume={folder}", "trainer.max_epochs=2")
        if change == "another picture":
            old.write_bytes(content)
            _draw(tmp_path / "pictures" / "red" / "99.png", "red", 5)
        elif change == "a new picture":
            (tmp_path / "pictures" / "red" / "99.png").unlink()
            old.rename(tmp_path / "pictures" / "green" / "new.png")
        else:
            (tmp_path / "pictures" / "green" / "new.png").rename(old)
    run_train(tmp_path / "unused", f"resume={folder}", "trainer.max_epochs=2")
    assert len(Run(folder).metrics) == 2


@pytest.mark.slow
def test_a_network_of_torchvision(tmp_path: Path) -> None:
    make_folders(tmp_path / "pictures", {"red": 12, "blue": 12})
    words = ("experiment=folder", f"data.root={tmp_path}/pictures", "data.size=32", "trainer.max_epochs=1")
    folder = run_train(tmp_path / "run", *words, "net=torchvision", "net.name=resnet18")
    run = Run(folder)
    assert run.summary["parameters"]["total"] == 11_699_112 - 513_000 + 513  # one unit in place of 1,000 classes
    assert run.attribute(run.examples(2), method="grad_cam").maps.shape == (2, 32, 32)
    with pytest.raises(SystemExit, match="there are resnet18"):
        run_train(tmp_path / "wrong", *words, "net=torchvision", "net.name=resnet81")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": None}, "data.root=<folder> is needed"),
        ({"root": "nowhere"}, "data.root=nowhere is no folder"),
        ({"root": "red"}, "red needs a folder per class, each with pictures"),
        ({"table": "none.csv"}, "there is no none.csv in"),
        ({"table": "labels.csv"}, "line 3: give a file and a class for each head"),
        ({"table": "plain.csv"}, "needs a column 'file'"),
        ({"table": "missing.csv"}, "there is no file gone.png"),
        ({"table": "twice.csv"}, "names red/0.png twice"),
        ({"table": "parts.csv"}, "the column 'split' says train, val or test"),
        ({"root": "splits"}, "splits holds the splits test, train: train/ is needed, with a folder per class"),
        ({"root": "above"}, "above holds one folder, not one per class: move the folders of above/pictures there"),
        ({"size": 4}, "data.size=4 in 8..1024"),
        ({"val_share": 0.6, "test_share": 0.4}, "below 1 together"),
        ({"test_share": 0.01, "val_share": 0.0}, "no picture is left for the test"),
    ],
)
def test_a_mistake_is_one_line(
    settings: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(tmp_path, {"red": 3, "blue": 3})
    (tmp_path / "labels.csv").write_text("file,colour\nred/0.png,red\nblue/0.png,\n")
    (tmp_path / "plain.csv").write_text("name,colour\nred/0.png,red\n")
    (tmp_path / "twice.csv").write_text("file;colour\nred/0.png;red\n./red/0.png;blue\n")
    (tmp_path / "parts.csv").write_text("file,colour,split\nred/0.png,red,train\nblue/0.png,blue,first\n")
    make_folders(tmp_path / "above" / "pictures", {"red": 3, "blue": 3})
    for name in ("train", "test"):  # the class stands in the file's name
        make_folders(tmp_path / "above", {"red": 3}).joinpath("red").rename(tmp_path / f"flat_{name}")
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / f"flat_{name}").rename(tmp_path / "splits" / name)
    (tmp_path / "missing.csv").write_text("file,colour\nred/0.png,red\ngone.png,blue\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as stop:
        ImageFolderDataModule(**{"root": ".", **settings}).setup()  # type: ignore[arg-type]
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_cut_off_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    make_folders(tmp_path / "pictures", {"red": 12, "green": 12})
    for file in (tmp_path / "pictures" / "red").iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    words = ("experiment=folder", f"data.root={tmp_path / 'pictures'}", "data.size=16", f"data.num_workers={workers}")
    with pytest.raises(SystemExit) as stop:
        run_train(tmp_path / "run", *words, "trainer.max_epochs=1")
    assert "red" in str(stop.value)
    assert "\n" not in str(stop.value).strip()
    assert len(str(stop.value)) < 250
    assert not (tmp_path / "run" / "metrics.csv").exists()  # before the first epoch


def test_every_picture_of_a_class_is_found(tmp_path: Path) -> None:
    """In folders within, behind links and in other formats; hidden files, links back and other files are left out."""
    root = make_folders(tmp_path / "pictures", {"red": 4, "blue": 4, "outputs": 0})
    make_folders(root, {"green": 3})
    (root / "green").rename(root / "outputs")
    (root / "outputs" / "0.png").rename(root / "outputs" / "a.tif")  # read by its content
    make_folders(tmp_path / "elsewhere", {"red": 5}, first=10)
    (root / "red" / "more").symlink_to(tmp_path / "elsewhere" / "red", target_is_directory=True)
    (root / "red" / "back").symlink_to(root / "red", target_is_directory=True)
    make_folders(root / "blue" / "within", {"blue": 2}, first=20)
    make_folders(root / "blue" / ".ipynb_checkpoints", {"blue": 2}, first=20)
    for name in ("._0.png", "notes.txt"):
        (root / "blue" / name).write_text("no picture")
    data = ImageFolderDataModule(str(root), size=16)
    data.setup()
    assert data.heads[0].classes == ("blue", "outputs", "red")
    counts = [split.targets(torch.arange(len(split)))["class"].bincount(minlength=3) for split in data.splits.values()]
    assert sum(counts).tolist() == [6, 3, 9]  # type: ignore[attr-defined]


def test_other_pictures_are_not_tested(tmp_path: Path) -> None:
    """With other names other pictures are held out, so a run does not take them for its test split."""
    make_folders(tmp_path / "pictures", {"red": 12, "green": 12})
    words = ("experiment=folder", f"data.root={tmp_path / 'pictures'}", "data.size=16", "net.filters=[8]")
    run = Run(run_train(tmp_path / "run", *words, "trainer.max_epochs=1"))
    assert run.examples(1).truth is not None
    (tmp_path / "pictures" / "red" / "0.png").rename(tmp_path / "pictures" / "red" / "zero.png")
    with pytest.raises(UserError, match="are not those that the run began with"):
        Run(run.path).examples(1)


def test_a_test_picture_that_was_trained_on_is_counted_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "pictures" / "train", {"red": 12, "green": 12})
    make_folders(tmp_path / "pictures" / "test", {"red": 2, "green": 2}, first=100)
    for number in range(3):
        _draw(tmp_path / "pictures" / "test" / "red" / f"copy {number}.png", "red", 1)
    words = ("experiment=folder", f"data.root={tmp_path / 'pictures'}", "data.size=16", "net.filters=[8]")
    run = Run(run_train(tmp_path / "run", *words, "trainer.max_epochs=1", "data.val_share=0"))
    assert {key: run.summary["data"][key] for key in ("test", "overlap", "test_in_train")} == {
        "test": 7, "overlap": 1, "test_in_train": 3,
    }  # fmt: skip
    assert "! not new        3 of 7 test images are also training images" in capsys.readouterr().out


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    make_folders(tmp_path, {"red": 9, "blue": 9})
    (tmp_path / "red" / "notes.txt").write_text("left alone")
    (tmp_path / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png is no picture that can be read: PNG, JPEG"):
        ImageFolderDataModule(str(tmp_path)).setup()


@pytest.mark.slow
def test_few_pictures_are_audited_with_those_of_the_other_splits(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "pets", {"red": 12, "blue": 12})
    folder = run_train(
        tmp_path / "run", "experiment=folder", f"data.root={root}", "data.size=20", "trainer.max_epochs=1"
    )
    run = Run(folder)
    assert len(run.test_split) < 8
    assert run.audit(["saliency"]).images == 24
    assert run.title == "folder on pets"
    assert {name.partition("/")[0] for name in run.examples(2).names} <= {"red", "blue"}


def test_the_hash_of_the_pictures_is_of_the_beginning(tmp_path: Path) -> None:
    """A picture that goes, or changes, during a training stops no checkpoint, and is noticed when the run goes on."""
    folder = make_folders(tmp_path, {"red": 12, "blue": 12})
    data, later = (ImageFolderDataModule(str(folder), size=16) for _ in range(2))
    data.setup()
    state = data.state_dict()
    _draw(folder / "red" / "0.png", "blue", 3)
    (folder / "blue" / "1.png").unlink()
    assert data.state_dict() == state
    later.setup()
    with pytest.raises(UserError, match="are not those that the run began with"):
        later.load_state_dict(state)
