"""Images from outside: files, folders, arrays and tensors of any size and mode, treated as a data set has its own.

A data set says by its `expects` what it holds: "digit", one light digit on black as MNIST has it (LeCun et al. 1998: in
a box of 20 x 20, its centre of mass in the middle); "line", something coloured on black; or "image", anything.
"""

from __future__ import annotations

import base64
import glob
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cnnlab.errors import UserError

EXPECTS = ("image", "digit", "line")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")
STATE = ".json"  # of a state that play saved
MOST_STATE = 10_000_000  # bytes of it
LONGEST = 4096  # pixels of a side with which an image is worked on
MOST_PIXELS = 50_000_000  # of an image file; a larger one is refused before it is unpacked
BOX = 20 / 28  # of an image's side: in which MNIST's digits lie
FAINT = 0.2  # of the strongest ink: what is fainter is no part of a digit
NOISE = 24  # of 255: a ground that differs less from black is black

WRONG_RANGE = "an image is uint8 in [0, 255] or float in [0, 1]"

Pixels = NDArray[np.float64]


def image_files(words: Sequence[str]) -> list[Path]:
    """The files that words name: files themselves, the images in folders, and those that patterns like `a/*.png`
    match. Raises `UserError` where a word names none."""
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"there is no image in {path}: {', '.join(SUFFIXES)} are read")
            found += files
        elif not path.exists() and glob.has_magic(word):
            files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
            if not files:
                raise UserError(f"no file matches {word}")
            found += files
        else:
            found.append(path)
    if not found:
        raise UserError("image=[]: name at least one image file")
    return found


def images_of(given: Any) -> list[Any]:
    """One or many images as a list: of paths, PIL images, arrays (H, W) or (H, W, C), and tensors (C, H, W), each as
    `read_image` takes them. Arrays of three axes are one image in colour where the last has 1, 3 or 4 places, else many
    in grey; tensors likewise by their first; of four axes are many. Words name files, folders and patterns."""
    if isinstance(given, str | Path):
        return list(image_files([str(given)]))
    if isinstance(given, np.ndarray | Tensor):
        channels = given.shape[-1 if isinstance(given, np.ndarray) else 0] if given.ndim == 3 else 0
        return list(given) if given.ndim == 4 or (given.ndim == 3 and channels not in (1, 3, 4)) else [given]
    if isinstance(given, Sequence):
        return [image for one in given for image in images_of(one)]
    return [given]


def read_image(source: Any, image_shape: Sequence[int], expects: str = "image") -> tuple[Tensor, list[str]]:
    """An image of any size and mode as uint8 (C, H, W) = `image_shape`, C 1 or 3, with notes on what was done to it.

    `source` is a file, a PIL image, an array (H, W) or (H, W, C) or a tensor (C, H, W); floats are in [0, 1]. An array
    or a tensor that has the shape already is taken as it is, and so is the image in a state that play saved (JSON).
    Raises `UserError` where there is no such image, or it is broken or absurdly large.
    """
    channels, height, width = image_shape
    if isinstance(source, str | Path) and Path(source).suffix.lower() == STATE:
        source = _state(Path(source))
    if isinstance(source, np.ndarray | Tensor):
        pixels = _eight_bit_array(source)
        if tuple(pixels.transpose(2, 0, 1).shape) == tuple(image_shape):
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), []
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        notes = [f"{image.width} x {image.height}"]
    elif isinstance(source, Image.Image):
        image, notes = source, [f"{source.width} x {source.height}, mode {source.mode}"]
    elif isinstance(source, str | Path):
        image, notes = _opened(Path(source))
    else:
        raise UserError(f"{type(source).__name__} is no image: give a path, a PIL image, an array or a tensor")
    image = _on_background(_eight_bit(image, notes), notes)
    image = image.convert("L" if channels == 1 else "RGB")
    if max(image.size) > LONGEST:  # before it is made square
        image.thumbnail((LONGEST, LONGEST))
        notes.append(f"scaled to {image.width} x {image.height}")
    if expects == "digit" and channels == 1:
        image = _as_digit(image, (width, height), notes)
    elif expects == "line":
        image = _on_black(image, notes)
    elif channels == 1 and float(np.median(_border(np.asarray(image)))) > 127:
        image = ImageOps.invert(image)
        notes.append("dark on light, inverted")
    image = _fitted(image, (width, height), notes)
    pixels = np.array(image).reshape(height, width, channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), notes


def _fitted(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Image.Image:
    """Padded with black to the shape of `size`, and scaled to it."""
    width, height = size
    if image.width * height != image.height * width:
        scale = max(math.ceil(image.width / width), math.ceil(image.height / height))
        side = (scale * width, scale * height) if height != width else (max(image.size),) * 2
        image = ImageOps.pad(image, side, color=0)
        notes.append(f"padded with black to {side[0]} x {side[1]}")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
        notes.append(f"resized to {width} x {height}")
    return image


def _as_digit(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Image.Image:
    """One light digit on black: the strokes are what differs from the ground, the strongest of them white; scaled to a
    box of 20 / 28 of `size`, and shifted until the centre of mass is in the middle. What is so already stays."""
    values = np.asarray(image, dtype=np.float64)
    ground = float(np.median(_border(values)))
    ink = np.abs(values - ground)
    most = float(np.quantile(ink, 1 - min(0.01, 8 / ink.size)))  # a few stray pixels are not the digit
    if most < NOISE:
        notes.append("nothing is drawn on it")
        return Image.new("L", size)
    if ground > NOISE:
        notes.append("dark on light, inverted" if ground > 127 else f"its ground of {ground:.0f} made black")
    ink = np.clip(ink / most, 0, 1)
    ink[ink < FAINT] = 0
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    sides = (BOX * size[0], BOX * size[1])
    if image.size == size and ground <= NOISE and max(box.shape) <= max(sides) + 1 and _off_centre(ink) <= 1.5:
        return image
    scale = min(sides[0] / box.shape[1], sides[1] / box.shape[0])
    width, height = (max(1, round(scale * side)) for side in (box.shape[1], box.shape[0]))
    small = Image.fromarray((box * 255).astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
    digit = np.asarray(small, dtype=np.float64)
    digit *= 255 / max(1.0, float(digit.max()))  # thin strokes grow faint when they are made small
    left, top = (
        int(np.clip(round(whole / 2 - centre), 0, whole - side))
        for whole, centre, side in zip(size, _centre(digit), (width, height), strict=True)
    )
    canvas = np.zeros((size[1], size[0]))
    canvas[top : top + height, left : left + width] = digit
    notes.append(f"its strokes scaled to {width} x {height}, their centre of mass put into the middle")
    return Image.fromarray(np.rint(canvas).astype(np.uint8))


def _centre(ink: Pixels) -> tuple[float, float]:
    """The centre of mass (x, y) in pixels from the top left corner."""
    total = ink.sum()
    x = (ink.sum(axis=0) * (np.arange(ink.shape[1]) + 0.5)).sum() / total
    y = (ink.sum(axis=1) * (np.arange(ink.shape[0]) + 0.5)).sum() / total
    return float(x), float(y)


def _off_centre(ink: Pixels) -> float:
    """How many pixels the centre of mass lies from the middle, along the worse axis."""
    (x, y), (height, width) = _centre(ink), ink.shape
    return float(max(abs(x - width / 2), abs(y - height / 2)))


def _on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    """The same drawing on black: each pixel is taken for a mixture of the ground, the median of the border, with the
    colour that differs most from it: exact where something covers a pixel wholly, paler where nothing does."""
    values = np.asarray(image, dtype=np.float64).reshape(image.height, image.width, -1)
    ground = np.median(_border(values), axis=0)
    if ground.max() <= NOISE:
        return image
    distance = np.linalg.norm(values - ground, axis=2)
    strongest = distance >= max(NOISE, 0.97 * float(distance.max()))
    notes.append(f"its ground of {', '.join(f'{value:.0f}' for value in ground)} made black")
    if not strongest.any():
        return Image.new(image.mode, image.size)
    colour = values[strongest].mean(axis=0)
    share = ((values - ground) @ (colour - ground) / np.square(colour - ground).sum()).clip(0, 1)
    pixels = np.rint(share[..., None] * colour).astype(np.uint8)
    if pixels.max() <= NOISE:
        notes.append("nothing is left on it: what is drawn is black")
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])


def _opened(path: Path) -> tuple[Image.Image, list[str]]:
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"there is no image {path}" if not path.exists() else f"{path} cannot be read: it is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MOST_PIXELS:
                    raise UserError(f"{path} has {file.width} x {file.height} pixels, over {MOST_PIXELS:,}")
                image = ImageOps.exif_transpose(file)
                image.load()
                return image, [f"{file.width} x {file.height}, mode {file.mode}"]
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {' or '.join(FORMATS)} ({error})") from error


def _state(path: Path) -> NDArray[np.uint8]:
    """The image (H, W, C) in a state that play saved."""
    if not path.is_file():
        raise UserError(f"there is no image {path}")
    try:
        if path.stat().st_size > MOST_STATE:
            raise ValueError
        image = json.loads(path.read_text(encoding="utf-8"))["image"]
        pixels = np.frombuffer(base64.b64decode(image["pixels"], validate=True), np.uint8)
        height, width, channels = image["shape"]
        if min(height, width) < 1 or channels not in (1, 3):
            raise ValueError
        return pixels.reshape(height, width, channels)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not a state that python -m cnnlab.play saved") from error


def _eight_bit_array(source: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """(H, W, C) of an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W)."""
    values = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if values.ndim == 3 and isinstance(source, Tensor):
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
        raise UserError(f"an image of {tuple(source.shape)} is not (H, W), (H, W, C) or, of a tensor, (C, H, W)")
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not np.issubdtype(values.dtype, np.floating) or not (
        np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1
    ):
        raise UserError(WRONG_RANGE)
    levels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return levels


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        notes.append("16 bits a pixel, brought to 8")
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    return image


def _on_background(image: Image.Image, notes: list[str]) -> Image.Image:
    """Transparent pixels become black, as behind both data sets; white, where what is drawn is dark."""
    if not image.has_transparency_data:
        return image
    layers = image.convert("RGBA")
    alpha = np.asarray(layers)[..., 3] / 255
    light = np.asarray(layers.convert("RGB")).mean(axis=2)
    dark = alpha.sum() > 0 and (light * alpha).sum() / alpha.sum() < 64
    name = "white" if dark else "black"
    notes.append(f"transparent pixels made {name}")
    background = Image.new("RGBA", layers.size, name)
    return Image.alpha_composite(background, layers).convert("RGB")


def _border(pixels: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels, (n,) or (n, C)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
