"""Images from outside, of every kind, and the choice of images a person would pick."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.data.image_io import read_image
from cnnlab.data.lines import LineDataModule, LineDataset
from cnnlab.data.sampling import LineSampler
from cnnlab.interpret.inputs import Inputs, from_split, pick, read_inputs
from cnnlab.models.networks import Branched
from cnnlab.utils.errors import UserError
from tests.conftest import HEADS
from tests.models.test_networks import MULTI

GREY, COLOUR = (1, 28, 28), (3, 28, 28)


def _digit(side: int = 28) -> np.ndarray:
    """A light bar on dark, uint8 (side, side)."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[side // 4 : side // 2, side // 3 : side // 3 + side // 7] = 200
    return pixels


def _save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_an_image_of_the_right_kind_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels, notes = read_image(_save(tmp_path / "a.png", Image.fromarray(_digit())), GREY)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels[0].numpy(), _digit())
    assert notes == ["28 x 28, mode L"]


def test_dark_on_light_is_inverted_for_digits_only(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", Image.fromarray(255 - _digit()))
    pixels, notes = read_image(path, GREY)
    assert np.array_equal(pixels[0].numpy(), _digit())
    assert any("inverted" in note for note in notes)
    pixels, notes = read_image(path, COLOUR)
    assert np.array_equal(pixels[2].numpy(), 255 - _digit())
    assert not any("inverted" in note for note in notes)


def test_sixteen_bits_are_brought_to_eight(tmp_path: Path) -> None:
    wide = Image.fromarray(_digit().astype(np.uint16) * 257)
    pixels, notes = read_image(_save(tmp_path / "a.png", wide), GREY)
    assert np.array_equal(pixels[0].numpy(), _digit())
    assert any("16 bits" in note for note in notes)


def test_modes_with_colour_palette_and_transparency(tmp_path: Path) -> None:
    red = np.zeros((28, 28, 3), np.uint8)
    red[10, 5:20, 0] = 255
    rgb = Image.fromarray(red)
    opaque = np.dstack([np.full_like(red, [255, 0, 0]), red[..., 0]])  # red everywhere, seen on the line only
    images = {"rgb": rgb, "p": rgb.convert("P"), "rgba": Image.fromarray(opaque)}
    for name, image in images.items():
        pixels, notes = read_image(_save(tmp_path / f"{name}.png", image), COLOUR)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), red), (name, notes)
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[..., 3] = _digit()  # black ink on nothing
    pixels, notes = read_image(_save(tmp_path / "ink.png", Image.fromarray(ink)), GREY)
    assert np.array_equal(pixels[0].numpy(), _digit())
    assert any("white" in note for note in notes)
    bit = Image.fromarray(_digit() > 0)
    assert read_image(_save(tmp_path / "bit.png", bit), GREY)[0].max() == 255


def test_any_size_is_brought_to_that_of_the_data_set(tmp_path: Path) -> None:
    tall = Image.fromarray(np.vstack([_digit(280), np.zeros((280, 280), np.uint8)]))
    pixels, notes = read_image(_save(tmp_path / "a.jpg", tall), GREY)
    assert pixels.shape == (1, 28, 28)
    assert notes[1:] == ["padded with black to 560 x 560", "resized to 28 x 28"]
    assert pixels.amax() > 150
    pixels, _ = read_image(_save(tmp_path / "tiny.png", Image.new("RGB", (1, 1), "red")), COLOUR)
    assert pixels.shape == (3, 28, 28)
    pixels, notes = read_image(_save(tmp_path / "wide.png", Image.new("RGB", (80, 40), "red")), (3, 24, 40))
    assert pixels.shape == (3, 24, 40)
    assert notes[1:] == ["padded with black to 80 x 48", "resized to 40 x 24"]


def _huge_png() -> bytes:
    """The header of an image of 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def _large_png() -> bytes:
    return _huge_png().replace(struct.pack(">II", 60_000, 60_000), struct.pack(">II", 10_000, 10_000))


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    good = _save(tmp_path / "good.png", Image.fromarray(_digit())).read_bytes()
    head = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    for name, content, message in (
        ("text.png", b"not an image", "cannot be read as an image"),
        ("empty.png", b"", "cannot be read as an image"),
        ("cut.png", good[: len(good) // 2], "cannot be read as an image"),
        ("huge.png", _huge_png(), "cannot be read as an image|60000 x 60000 pixels"),
        ("large.png", large + good[33:], "10000 x 10000 pixels, over"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read_image(tmp_path / name, GREY)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no image"):
        read_image(tmp_path / "nothing.png", GREY)
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path, GREY)


def test_examples_of_another_network_must_fit() -> None:
    with pytest.raises(UserError, match=r"images of \(1, 28, 28\) do not fit a network for \(3, 28, 28\)"):
        read_inputs(Inputs(torch.zeros(2, 1, 28, 28), ["a", "b"]), (3, 28, 28))


def test_images_of_a_split_by_number() -> None:
    split = LineDataset(LineSampler(0, "test"), 1)
    found = from_split(split, [5, 95])
    assert found.names == ["test image 5", "test image 95"]
    assert found.truth is not None
    assert found.truth["colour"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"96 is not in 0\.\.95"):
        from_split(split, [96])


def test_the_picked_images_differ_and_the_surest_mistake_is_first() -> None:
    data = LineDataModule(train_per_class=1, val_per_class=0, test_per_class=2)
    data.setup()
    split = data.splits["test"]
    torch.manual_seed(0)
    net = Branched(**MULTI).eval()
    chosen = pick(net, HEADS, split, 6)
    assert len(set(chosen)) == 6
    with torch.no_grad():
        logits = net(split.images(torch.arange(192)).float() / 255)
    targets = split.targets(torch.arange(192))
    sure = torch.stack(
        [
            head.probabilities(logits[head.name]).amax(dim=1) * (head.predict(logits[head.name]) != targets[head.name])
            for head in HEADS
        ]
    )
    assert chosen[0] == int(sure.amax(dim=0).argmax())
    classes = [tuple(int(targets[head.name][i]) for head in HEADS) for i in chosen]
    assert len({c[2] for c in classes}) == 6  # six angles
    assert len(set(classes)) == 6


def test_a_pipe_and_a_thread_of_pixels_do_not_stop_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="it is no file"):
        read_image(tmp_path / "pipe.png", GREY)
    pixels, notes = read_image(_save(tmp_path / "thread.png", Image.new("L", (1, 2_000_000), 200)), GREY)
    assert pixels.shape == (1, 28, 28)
    assert "scaled to 1 x 4096" in notes
