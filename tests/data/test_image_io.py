"""Images from outside in the form that their data set has: digits as MNIST's, lines on black, anything given anyhow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from cnnlab.data.image_io import image_files, images_of, read_image
from cnnlab.data.lines import LineDataModule
from cnnlab.interpret.inputs import read_inputs
from cnnlab.utils.errors import UserError

GREY, COLOUR = (1, 28, 28), (3, 28, 28)
DIGIT_7 = ((0.3, 0.25), (0.7, 0.25), (0.45, 0.75))  # its strokes, in shares of a side


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
    assert notes[-1] == "is blank, nothing is drawn on it"


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


@pytest.mark.parametrize("input_type", ["digit", "line"])
def test_arrays_on_a_light_background_are_put_on_black_as_pictures_are(input_type: str) -> None:
    shape = GREY if input_type == "digit" else COLOUR
    pixels = torch.zeros(shape, dtype=torch.uint8)
    pixels[0, 4:24, 12:16] = 255
    light = 255 - pixels
    if input_type == "line":  # red on white
        light = torch.stack([torch.full_like(pixels[0], 255), 255 - pixels[0], 255 - pixels[0]])
    picture = light.permute(1, 2, 0).numpy().squeeze()
    expected = read_image(Image.fromarray(picture), shape, input_type)[0]
    assert torch.equal(expected, pixels)
    for given in (picture, picture / 255.0, light, light.float() / 255, light.permute(1, 2, 0).numpy()):
        assert torch.equal(read_image(given, shape, input_type)[0], expected)
        assert torch.equal((read_inputs(given, shape, input_type).images[0] * 255).round(), expected.float())
    as_it_is = read_inputs(light.float() / 255, shape, "image").images[0]
    assert torch.equal(as_it_is, light.float() / 255)


def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (28, 28))
    ImageDraw.Draw(picture).line((6, 4, 6, 20), fill="red", width=3)
    upright = read_image(picture, COLOUR, "line")[0]
    for orientation, turned in (
        (3, picture.rotate(180)), (6, picture.rotate(90)), (8, picture.rotate(270)), (2, ImageOps.mirror(picture)),
    ):  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.save(tmp_path / "photo.png", exif=exif)
        for given in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png")):
            assert torch.equal(read_image(given, COLOUR, "line")[0], upright), (orientation, given)
    (tmp_path / "torn.png").write_bytes((tmp_path / "photo.png").read_bytes()[:-30])
    with Image.open(tmp_path / "torn.png") as torn, pytest.raises(UserError, match="the PIL image cannot be read"):
        read_image(torn, COLOUR, "line")


@pytest.mark.parametrize(
    ("shape", "images"),
    [((28, 28), 1), ((1, 28, 28), 1), ((2, 28, 28), 2), ((3, 28, 28), 3), ((4, 28, 28), 4), ((5, 1, 28, 28), 5)],
)
def test_a_network_of_grey_images_reads_grey_images(shape: tuple[int, ...], images: int) -> None:
    values = torch.arange(784 * images, dtype=torch.int64).remainder(128).to(torch.uint8).view(images, 1, 28, 28)
    for given in (values.view(shape), values.view(shape).numpy(), [values.view(shape)]):
        inputs = read_inputs(given, GREY, "image")
        assert torch.equal((inputs.images * 255).round().to(torch.uint8), values)


def test_a_network_of_coloured_images_reads_coloured_images() -> None:
    values = torch.arange(3 * 784).remainder(100).to(torch.uint8).view(COLOUR)
    for given in (values, values.numpy(), values.permute(1, 2, 0).numpy(), values[None], values[None].numpy()):
        inputs = read_inputs(given, COLOUR, "image")
        assert torch.equal((inputs.images[0] * 255).round().to(torch.uint8), values)
        assert len(inputs) == 1


@pytest.mark.parametrize(
    ("given", "image_shape", "message"),
    [
        (torch.zeros(3, 50, 40), GREY, r"give it as \(1, 3, 50, 40\) or as \(3, 1, 50, 40\)"),
        (torch.zeros(4, 50, 40), COLOUR, r"give it as \(1, 4, 50, 40\) or as \(4, 1, 50, 40\)"),
        (np.zeros((3, 50, 40)), GREY, r"give it as \(1, 50, 40, 3\) or as \(3, 50, 40, 1\)"),
        (np.zeros((3, 50, 40)), COLOUR, "is one image in colour or 3 grey ones"),
        (torch.zeros(28, 28, 3), COLOUR, r"channels last: .* use \.permute\(2, 0, 1\)"),
        (torch.zeros(28, 28, 1), GREY, "channels last"),
        (np.zeros((28, 28, 2)), GREY, "is neither an image of 1, 3 or 4 channels nor grey images"),
        (torch.zeros(28, 64, 2), COLOUR, "is neither an image"),
    ],
)
def test_a_shape_that_can_be_read_in_two_ways_is_refused(
    given: torch.Tensor, image_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        images_of(given, image_shape)


def test_a_digit_on_grey_is_put_on_black_as_an_array_too() -> None:
    pixels = np.full((28, 28), 100, np.uint8)
    pixels[4:24, 12:16] = 0
    expected = np.zeros((28, 28), np.float32)
    expected[4:24, 12:16] = 1
    for given in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels), pixels / 255.0, pixels[None, :, ::-1]):
        (image,) = read_inputs(given, GREY, "digit").images
        assert np.abs(image[0].numpy() - expected).max() < 0.01


@pytest.mark.parametrize(
    ("colour", "words"), [("black", "black"), ((40, 40, 40), "black"), ((0, 0, 60), "black"), ((128, 128, 128), "grey")]
)
def test_a_line_without_a_colour_is_said_to_be_so(colour: str, words: str) -> None:
    picture = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(picture).line((95, 190, 195, 90), fill=colour, width=30)
    assert f"was drawn in {words}; lines are red or blue" in read_image(picture, COLOUR, "line")[1]
    ImageDraw.Draw(picture).line((95, 190, 195, 90), fill="red", width=30)
    assert not [note for note in read_image(picture, COLOUR, "line")[1] if note.startswith("was drawn")]


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (1, 1), (2000, 2)])
def test_a_digit_of_any_shape_is_read_without_a_warning(size: tuple[int, int]) -> None:
    picture = Image.new("L", size, 255)
    picture.paste(0, (0, 0, (size[0] + 1) // 2, (size[1] + 1) // 3))
    assert read_image(picture, GREY, "digit")[0].shape == GREY


@pytest.mark.parametrize("scale", [1, 255, 257 * 255])
def test_floats_and_wide_integers_are_read_by_their_range(scale: int) -> None:
    values = np.ones((60, 60), np.float32) * scale
    values[10:50, 25:35] = 0
    images = [Image.fromarray(values)] + ([Image.fromarray(values.astype(np.int32))] if scale > 1 else [])
    for image in images:
        pixels, _ = read_image(image, GREY, "digit")
        assert pixels.max() == 255
        assert 0.05 < (pixels > 0).float().mean() < 0.3


@pytest.mark.parametrize("light", ["corners", "gradient", "lamp"])
@pytest.mark.parametrize("side", [28, 280])
@pytest.mark.parametrize("ink", [30, 255])
def test_uneven_light_changes_little_of_a_digit(light: str, side: int, ink: int) -> None:
    page = Image.new("L", (side, side))
    ImageDraw.Draw(page).line([(side * x, side * y) for x, y in DIGIT_7], fill=255, width=side // 10)
    share = np.asarray(page, np.float64) / 255
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    lights = {
        "corners": 1 - 0.45 * (x**2 + y**2) / 2, "gradient": 0.7 + 0.3 * x,
        "lamp": 0.4 + 0.6 * np.exp(-((x - 0.4) ** 2 + (y + 0.3) ** 2) / 0.8),
    }  # fmt: skip
    ground = 235 if ink < 128 else 70  # ink on paper, chalk on a board
    picture = (ground + (ink - ground) * share) * lights[light]
    lit, _ = read_image(Image.fromarray(picture.astype(np.uint8)), GREY, "digit")
    even, _ = read_image(Image.fromarray((ground + (ink - ground) * share).astype(np.uint8)), GREY, "digit")
    both = torch.stack([lit.flatten(), even.flatten()]).float()
    assert torch.corrcoef(both)[0, 1] > 0.85


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
    with pytest.raises(UserError, match="no image matches"):
        image_files([f"{tmp_path}/*.tiff"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image in"):
        image_files([str(tmp_path / "empty")])
