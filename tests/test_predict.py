"""python -m cnnlab.predict, and whether nonsense is noticed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from cnnlab.api import Run
from cnnlab.data.datamodule import sample_indices
from cnnlab.data.lines import LineDataset
from cnnlab.data.sampling import LineSampler
from cnnlab.interpret.inputs import read_inputs
from cnnlab.interpret.ood import OODDetector, fit_ood_detector
from cnnlab.interpret.prediction import image_warnings
from cnnlab.utils.checkpoints import save_tensors
from cnnlab.utils.errors import UserError
from tests.conftest import in_process


def _drawings(folder: Path) -> Path:
    folder.mkdir()
    split = LineDataset(LineSampler(0, "test"), 1)
    for number in (3, 90):
        image = split.images(torch.tensor([number]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"line_{number}.png")
    noise = torch.randint(256, (28, 28, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "noise.png")
    Image.new("RGB", (50, 40), "white").save(folder / "white.gif")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_folder_with_an_unreadable_file_among_others(
    lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _drawings(tmp_path / "drawings")
    in_process("predict", f"run={lines_run}", f"images={folder}", f"out={tmp_path}/out")
    said = capsys.readouterr().out
    names = ["line_3.png", "line_90.png", "noise.png", "white.gif"]
    assert [line.split()[0] for line in said.splitlines()[:5]] == ["image", *names]
    assert "! noise.png is unlike the images that the network was trained on" in said
    assert "! white.gif is blank, nothing is drawn on it: don't trust the answer" in said
    assert f"! {folder}/broken.png cannot be read as an image" in said
    with (tmp_path / "out" / "1" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    content = json.loads((tmp_path / "out" / "1" / "predictions.json").read_text())
    assert list(content["unreadable"]) == [f"{folder}/broken.png"]
    angle = content["images"][0]["heads"]["angle"]
    assert sum(angle["probabilities"].values()) == pytest.approx(1)
    assert max(angle["probabilities"], key=angle["probabilities"].get) == angle["answer"] == rows[0]["angle"]
    in_process("predict", f"run={lines_run}", f"images='{folder}/line_*.png'", f"out={tmp_path}/out")
    with (tmp_path / "out" / "2" / "predictions.csv").open() as file:
        for again, row in zip(csv.DictReader(file), rows, strict=False):
            numbers = [name for name in row if name.endswith("_probability")]
            assert [float(again[name]) for name in numbers] == pytest.approx([float(row[name]) for name in numbers])
            assert {again[name] for name in again.keys() - set(numbers)} == {
                row[name] for name in row.keys() - set(numbers)
            }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the images: images="),
        (("images=nothing.png",), "there is no image nothing.png"),
        (("images=broken.png",), "broken.png cannot be read as an image"),
        (("images='x/*.png'",), "no image matches x/"),
        (("imag=a.png",), "did you mean 'images'"),
    ],
)
def test_nothing_to_read_is_one_line(
    words: tuple[str, ...], message: str, lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=message):
        in_process("predict", f"run={lines_run}", f"out={tmp_path}/out", *words)
    assert not (tmp_path / "out").exists()


class Bars(nn.Module):
    """A network whose one convolution is the image itself, so that its features can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(1)


def _bars(count: int, first: int = 0) -> Tensor:
    """Images 1 x 8 x 8 with a bar of 1 to 4 rows, each a little brighter than the one before."""
    images = torch.zeros(count, 1, 8, 8)
    for place, image in enumerate(images):
        number = first + place
        image[0, : 1 + number % 4] = 0.5 + 0.001 * number
    return images


def test_the_distance_to_the_training_images_by_hand() -> None:
    """Twice the features (mean, highest), of the image and of the convolution, with the weight 1 / sqrt(2) each: the
    distance is that of the standardised mean and highest value."""
    net, train = Bars(), _bars(200)
    detector = fit_ood_detector(net, train, _bars(100, first=50))
    features = torch.stack([train.mean(dim=(1, 2, 3)), train.amax(dim=(1, 2, 3))], dim=1)
    scale = features.std(dim=0, correction=0)
    odd = torch.full((1, 1, 8, 8), 0.6)
    wanted = ((torch.tensor([0.6, 0.6]) - features) / scale).norm(dim=1).min()
    assert (detector.scores(net, odd) * detector.limit).item() == pytest.approx(wanted.item(), rel=2e-3)
    assert (detector.scores(net, train) * detector.limit).max() < 0.01  # half precision
    assert detector.scores(net, torch.cat([odd, torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])).min() > 1
    one, many = detector.scores(net, odd), detector.scores(net, torch.cat([_bars(299), odd]))[-1:]
    assert torch.allclose(one, many)  # an image's score does not depend on the others


def test_of_images_like_the_training_images_one_in_a_thousand_is_unusual() -> None:
    generator = torch.Generator().manual_seed(0)
    train, held_out, fresh = (torch.rand(size, 1, 8, 8, generator=generator) ** 3 for size in (500, 3000, 3000))
    detector = fit_ood_detector(Bars(), train, held_out)
    assert (detector.scores(Bars(), held_out) > 1).sum() == 3
    assert (detector.scores(Bars(), fresh) > 1).float().mean() < 0.004


def test_an_image_of_one_colour_is_empty_whatever_its_distance() -> None:
    images = torch.zeros(4, 3, 28, 28)
    images[1, 0] = 1  # red all over
    images[2:, :, 3, 4] = 1  # a white pixel
    empty, far = "is empty, all its pixels are equal", "is unlike the images that the network was trained on"
    for_all = image_warnings(images, torch.tensor([0.5, 3.0, 2.0, 1.0]))
    assert for_all == [empty, empty, f"{far} (2.00 times the usual limit)", ""]
    assert image_warnings(images, None) == [empty, empty, "", ""]


def test_what_is_kept_of_the_training_images(lines_run: Path, tmp_path: Path) -> None:
    run = Run(lines_run)
    assert run.ood_detector is not None
    state = vars(run.ood_detector)
    again = OODDetector(**state)
    images = run.examples(4).images
    assert torch.equal(again.scores(run.net, images), run.ood_detector.scores(run.net, images))
    copy = shutil.copytree(lines_run, tmp_path / "copy")
    for broken in ({}, {**state, "scale": torch.ones(3)}, {**state, "limit": torch.ones(2)}):
        save_tensors(copy / "checkpoints" / "ood.ckpt", broken)
        with pytest.raises(UserError, match=r"ood.ckpt: it holds no features of training images"):
            Run(copy).predict(images)
    narrow = {name: value[..., :5] if value.ndim else value for name, value in state.items()}
    save_tensors(copy / "checkpoints" / "ood.ckpt", narrow)
    with pytest.raises(UserError, match="those of another network"):
        Run(copy).predict(images)
    (copy / "checkpoints" / "ood.ckpt").unlink()  # a run of version 0.2
    said = Run(copy).predict(images)
    assert said.ood is None
    assert "ood" not in said.rows()[0]


def test_a_sample_of_a_split_meets_every_class() -> None:
    """Classes come in turns, 96 of them; equal steps of 24 would meet four."""
    rows = sample_indices(24_000, 1000)
    assert len(rows.unique()) == 1000
    assert torch.equal(rows, sample_indices(24_000, 1000))
    assert len((rows % 96).unique()) == 96
    assert torch.equal(sample_indices(5, 5), torch.arange(5))
    with pytest.raises(UserError, match="6 images are too many or too few: the split has 5"):
        sample_indices(5, 6)


@pytest.mark.parametrize("page", [(255, 255, 255), (250, 240, 200), (200, 200, 200)])
def test_a_line_drawn_in_black_is_said_to_be_so(lines_run: Path, page: tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (280, 280), page)
    ImageDraw.Draw(picture).line((95, 190, 195, 90), fill="black", width=20)
    for given in (picture, np.asarray(picture), picture.resize((28, 28), Image.Resampling.NEAREST)):
        prediction = Run(lines_run).predict(given)
        assert prediction.warnings() == ["image 0 was drawn in black; lines are red or blue: don't trust the answer"]
        prediction.plot()


@pytest.mark.parametrize(("page", "pixels"), [("black", 7), ("white", 5), ("black", 1)])
def test_a_line_too_short_for_a_digit_is_not_called_empty(page: str, pixels: int) -> None:
    picture = Image.new("RGB", (28, 28), page)
    ImageDraw.Draw(picture).line((10, 14, 9 + pixels, 14), fill="red")
    inputs = read_inputs(picture, (1, 28, 28), "digit")
    assert image_warnings(inputs.images, None, inputs.notes) == [
        f"has too little drawn on it for a digit ({pixels} of 784 pixels)"
    ]
