"""Images from outside in the form that their data set has: digits as MNIST's, lines on black, anything given anyhow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cnnlab.data.lines import LineDataModule
from cnnlab.data.outside import image_files, images_of, read_image
from cnnlab.errors import UserError

GREY, COLOUR = (1, 28, 28), (3, 28, 28)


def _centre(pixels: torch.Tensor) -> tuple[float, float]:
    """The centre of mass (x, y) of uint8 (1, H, W), in pixels from the top left corner."""
    ink = pixels[0].double()
    places = torch.arange(len(ink)) + 0.5
    return float((ink.sum(dim=0) * places).sum() / ink.sum()), float((ink.sum(dim=1) * places).sum() / ink.sum())


@pytest.mark.parametrize(("ground", "stroke"), [(0, 255), (255, 0), (90, 200), (240, 150)])
def test_a_digit_lies_in_a_box_of_20_with_its_centre_of_mass_in_the_middle(ground: int, stroke: int) -> None:
    image = Image.new("L", (300, 200), ground)
    ImageDraw.Draw(image).line([(20, 20), (60, 20), (30, 100)], fill=stroke, width=4)
    pixels, notes = read_image(image, GREY, "digit")
    lit = pixels[0] > 0
    assert lit.any(dim=1).sum() == 20  # the longer side
    assert pixels.max() == 255  # thin strokes do not grow faint
    assert pixels[0, :2].max() == 0  # black ground
    assert _centre(pixels) == pytest.approx((14, 14), abs=0.75)
    assert notes[-1].endswith("their centre of mass put into the middle")


def test_a_digit_in_the_right_form_stays_as_it_is() -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 12:16] = 255
    found, notes = read_image(Image.fromarray(pixels), GREY, "digit")
    assert np.array_equal(found[0].numpy(), pixels)
    assert notes == ["28 x 28, mode L"]


def test_an_empty_page_is_said_to_be_empty() -> None:
    pixels, notes = read_image(Image.new("L", (90, 90), 250), GREY, "digit")
    assert pixels.max() == 0
    assert notes[-1] == "nothing is drawn on it"


@pytest.mark.parametrize("ground", [(255, 255, 255), (255, 250, 200)])
def test_a_line_on_a_light_ground_is_the_line_on_black(ground: tuple[int, int, int]) -> None:
    data = LineDataModule(train_per_class=1, val_per_class=0, test_per_class=1)
    data.setup("test")
    rows = torch.arange(0, 96, 7)
    split = data.splits["test"]
    for line, thick in zip(split.images(rows), split.targets(rows)["width"], strict=True):
        share = line.amax(dim=0).double() / 255  # how much of each pixel the line covers
        paper = torch.tensor(ground, dtype=torch.float64)[:, None, None] * (1 - share) + line.double()
        image = Image.fromarray(paper.round().to(torch.uint8).permute(1, 2, 0).numpy())
        found, notes = read_image(image, COLOUR, "line")
        if thick:
            assert (found.int() - line.int()).abs().max() <= 3
        else:  # no pixel may be covered wholly, so nobody knows the colour quite: it is the line's, paler
            assert found.amax(dim=(1, 2)).argmax() == line.amax(dim=(1, 2)).argmax()
            assert found.amax(dim=0)[share == 0].max() <= 3
        assert notes[-1].endswith("made black")
        assert torch.equal(read_image(Image.fromarray(line.permute(1, 2, 0).numpy()), COLOUR, "line")[0], line)


def test_arrays_and_tensors_are_images() -> None:
    line = torch.zeros(3, 28, 28)
    line[0, 10, 5:20] = 1
    for given in (line, line.permute(1, 2, 0).numpy(), (line * 255).to(torch.uint8)):
        pixels, notes = read_image(given, COLOUR, "line")
        assert torch.equal(pixels, (line * 255).to(torch.uint8))
        assert notes == []
    with pytest.raises(UserError, match="uint8 in"):
        read_image(line * 2, COLOUR)
    with pytest.raises(UserError, match=r"\(2, 28, 28\) is not \(H, W\)"):
        read_image(torch.zeros(2, 28, 28), COLOUR)
    with pytest.raises(UserError, match="int is no image"):
        read_image(3, COLOUR)


def test_one_or_many_given_anyhow(tmp_path: Path) -> None:
    for name in ("b.png", "a.webp", "c.gif"):
        Image.new("L", (5, 5), 90).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [path.name for path in image_files([str(tmp_path)])]
    assert names == ["a.webp", "b.png", "c.gif"]
    assert [path.name for path in image_files([f"{tmp_path}/*.png", f"{tmp_path}/c.gif"])] == ["b.png", "c.gif"]
    assert [read_image(path, COLOUR)[0].max().item() for path in images_of(str(tmp_path))] == [90, 90, 90]
    assert len(images_of(torch.zeros(7, 1, 28, 28))) == 7
    assert len(images_of(np.zeros((7, 28, 28)))) == 7
    assert len(images_of(np.zeros((28, 28, 3)))) == 1
    assert len(images_of([np.zeros((28, 28)), tmp_path / "b.png"])) == 2
    with pytest.raises(UserError, match="no file matches"):
        image_files([f"{tmp_path}/*.tiff"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image in"):
        image_files([str(tmp_path / "empty")])
