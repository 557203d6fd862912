"""Read images from outside: files, folders, arrays and tensors of any size and mode.

They are converted to the input type of a data set: "digit", one light digit on black as in MNIST (LeCun et al. 1998: in
a box of 20 x 20, with its centre of mass in the middle); "line", something coloured on black; or "image", anything.
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

from cnnlab.utils.errors import UserError

INPUT_TYPES = ("image", "photo", "digit", "line")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
STATE = ".json"  # of a state that play saved
MAX_STATE = 10_000_000  # bytes of it
LONGEST = 4096  # pixels of a side with which an image is worked on
MAX_PIXELS = 50_000_000  # of an image file; a larger one is refused before it is unpacked
BOX = 20 / 28  # of an image's side: in which MNIST's digits lie
FAINT = 0.2  # of the strongest ink: what is fainter is no part of a digit
NOISE = 24  # of 255: a ground that differs less from black is black
DEGREE = 4  # of the polynomial that the background of a photograph is taken for
FITTED = 64  # pixels of a side to which it is fitted
PHOTO = 512  # pixels of the longer side to which a photograph of a digit is brought first

# Notes that say why nothing is left of an image; the first words of each.
BLANK = "is blank, nothing is drawn on it"
DRAWN_IN_BLACK = "was drawn in black; lines are red or blue"
DRAWN_IN_GREY = "was drawn in grey; lines are red or blue"
TOO_SMALL = "has too little drawn on it for a digit"
WHY_EMPTY = (BLANK, DRAWN_IN_BLACK, DRAWN_IN_GREY, TOO_SMALL)

WRONG_RANGE = "an image is uint8 in [0, 255] or float in [0, 1]"

Pixels = NDArray[np.float64]


def image_files(words: Sequence[str]) -> list[Path]:
    """Return the files that words name: files, the images in folders, and matches of patterns like `a/*.png`. Raises
    `UserError` for a word without files."""
    paths: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"there is no image in {path}: {', '.join(SUFFIXES)} are read")
            paths += files
        elif not path.exists() and glob.has_magic(word):
            files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
            files = [file for file in files if file.suffix.lower() in (*SUFFIXES, STATE)]
            if not files:
                raise UserError(f"no image matches {word}")
            paths += files
        else:
            paths.append(path)
    if not paths:
        raise UserError("images=[]: name at least one image file")
    return paths


def images_of(given: Any, image_shape: Sequence[int] = (3, 28, 28)) -> list[Any]:
    """Return one or many images as a list, each for `read_image`.

    A word names files, folders or a pattern. Arrays are (H, W), (H, W, C) or (N, H, W, C); tensors are (H, W), (C, H,
    W) or (N, C, H, W). The network's `image_shape` (C, H, W) decides for images of its own size: (3, 28, 28) are three
    images for a network of grey images. Other grey images may be (N, H, W). Raises `UserError` for an ambiguous shape.
    """
    if isinstance(given, str | Path):
        return list(image_files([str(given)]))
    if isinstance(given, np.ndarray | Tensor):
        return _images_of_array(given, tuple(image_shape))
    if isinstance(given, Sequence):
        return [image for item in given for image in images_of(item, image_shape)]
    return [given]


def _images_of_array(given: NDArray[Any] | Tensor, image_shape: tuple[int, ...]) -> list[Any]:
    shape = tuple(given.shape)
    if shape[-3:] == image_shape and isinstance(given, np.ndarray):
        given = np.moveaxis(given, -3, -1)  # its channels come first
        return list(given) if given.ndim == 4 else [given]
    if given.ndim != 3:
        return list(given) if given.ndim == 4 else [given]
    if shape == image_shape:
        return [given]
    if shape[1:] == image_shape[1:] and image_shape[0] == 1:
        return list(given)
    kind = "a tensor" if isinstance(given, Tensor) else "an array"
    words = f"{kind} of shape {shape}"
    if isinstance(given, Tensor) and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise UserError(f"{words} has its channels last: in a tensor they come first, use .permute(2, 0, 1)")
    if (isinstance(given, Tensor) and shape[0] in (3, 4)) or (shape[0] == 3 and shape[2] not in (1, 3, 4)):
        if isinstance(given, Tensor) and shape[0] == image_shape[0]:
            return [given]
        size, (height, width) = shape[0], shape[1:]
        as_one, as_many = f"(1, {size}, {height}, {width})", f"({size}, 1, {height}, {width})"
        if isinstance(given, np.ndarray):
            as_one, as_many = f"(1, {height}, {width}, {size})", f"({size}, {height}, {width}, 1)"
        raise UserError(f"{words} is one image in colour or {size} grey ones: give it as {as_one} or as {as_many}")
    if (shape[0] if isinstance(given, Tensor) else shape[2]) in (1, 3, 4):
        return [given]
    if min(shape[1:]) < 8:
        raise UserError(f"{words} is neither an image of 1, 3 or 4 channels nor grey images (N, H, W)")
    return list(given)


def read_image(source: Any, image_shape: Sequence[int], input_type: str = "image") -> tuple[Tensor, list[str]]:
    """Return an image as uint8 (C, H, W) = `image_shape`, C 1 or 3, with notes on its conversion.

    `source` is a file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W); floats are in [0, 1]. An array
    or tensor of the right shape is kept, and so is the image in a state saved by Play (JSON). Digits, lines and grey
    images on a light background are put on black, photos are not. Raises `UserError` for a missing, broken or huge
    image.
    """
    channels, height, width = image_shape
    if isinstance(source, str | Path) and Path(source).suffix.lower() == STATE:
        source = _state(Path(source))
    if isinstance(source, np.ndarray | Tensor):
        pixels = _eight_bit_array(source)
        ready = tuple(pixels.transpose(2, 0, 1).shape) == tuple(image_shape)
        if ready and not is_on_light(pixels, input_type):
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), []
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        notes = [f"{image.width} x {image.height}"]
    elif isinstance(source, Image.Image):
        image, notes = _upright(source, "the PIL image"), [f"{source.width} x {source.height}, mode {source.mode}"]
    elif isinstance(source, str | Path):
        image, notes = open_image(Path(source))
    else:
        raise UserError(f"{type(source).__name__} is no image: give a path, a PIL image, an array or a tensor")
    image = _on_background(_eight_bit(image, notes), notes)
    image = image.convert("L" if channels == 1 else "RGB")
    if max(image.size) > LONGEST:  # before it is made square
        image.thumbnail((LONGEST, LONGEST))
        notes.append(f"scaled to {image.width} x {image.height}")
    if input_type == "digit" and channels == 1:
        image = _as_digit(image, (width, height), notes)
    elif input_type == "line":
        image = _on_black(image, notes)
    elif input_type == "image" and channels == 1 and float(np.median(_border(np.asarray(image)))) > 127:
        image = ImageOps.invert(image)
        notes.append("dark on light, inverted")
    image = _fitted(image, (width, height), notes)
    pixels = np.array(image).reshape(height, width, channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), notes


def _fitted(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Image.Image:
    """Return the image padded with black to the aspect ratio of `size`, and scaled to it."""
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


def is_on_light(pixels: NDArray[np.uint8], input_type: str) -> bool:
    """Return whether a digit or a line, uint8 (H, W, C), lies on a background that is not black. Our own grey
    backgrounds count as black."""
    darkest = {"digit": NOISE, "line": 80}.get(input_type, 255)
    return float(np.median(_border(pixels).min(axis=-1))) > darkest


def _as_digit(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Image.Image:
    """Return one light digit on black: strokes differ from the background, and the strongest become white. The digit is
    scaled to a box of 20/28 of `size` and centred by mass, unless it already is."""
    if max(image.size) > PHOTO:
        image = image.copy()
        image.thumbnail((PHOTO, PHOTO))
    values = np.asarray(image, dtype=np.float64)
    ground = float(np.median(_border(values)))
    ink = _ink(values)
    most = float(np.quantile(ink, 1 - min(0.01, 8 / ink.size)))  # a few stray pixels are not the digit
    if most < NOISE:
        drawn = int((ink >= NOISE).sum())
        notes.append(f"{TOO_SMALL} ({drawn} of {ink.size:,} pixels)" if drawn else BLANK)
        return Image.new("L", size)
    if ground > NOISE:
        notes.append("dark on light, inverted" if ground > 127 else f"its background of {ground:.0f} made black")
    noise = 1.5 * float(np.median(np.abs(np.diff(values.ravel()))))  # of one pixel, its deviation
    ink[ink < max(FAINT * most, min(4 * noise, 0.5 * most))] = 0
    ink = np.clip(ink / most, 0, 1)
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    sides = (BOX * size[0], BOX * size[1])
    if image.size == size and max(box.shape) <= max(sides) + 1 and _off_centre(ink) <= 1.5:
        return image if ground <= NOISE else Image.fromarray(np.rint(ink * 255).astype(np.uint8))
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


def _ink(values: Pixels) -> Pixels:
    """Return the difference of each pixel, (H, W) in [0, 255], from the background, in grey levels.

    The background is one grey level, or, under uneven light (a border of several levels), a smooth surface. Strokes are
    then measured relative to it, so that they are as strong in the shade.
    """
    low, ground, high = np.quantile(_border(values), (0.05, 0.5, 0.95))
    if high - low <= NOISE:
        ink: Pixels = np.abs(values - ground)
        return ink
    surface = _background(values)
    usual = float(np.median(surface))
    shares = (values - surface) / surface.clip(min=max(NOISE, 0.4 * usual))  # in the dark noise would look like ink
    sign = -1 if (shares**3).sum() < 0 else 1
    strokes: Pixels = (sign * shares * usual).clip(min=0)
    return strokes


def _background(values: Pixels) -> Pixels:
    """Return the polynomial surface (H, W) through most pixels, by least absolute differences (iteratively reweighted
    least squares), which the few strokes barely change."""
    size = tuple(min(side, FITTED) for side in values.shape[::-1])
    small = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BOX), np.float64)
    terms, wanted = _terms(*small.shape), small.ravel()
    weights = np.ones(len(wanted))
    for _ in range(20):
        weighted = terms * weights[:, None]
        factors = np.linalg.lstsq(weighted.T @ terms, weighted.T @ wanted, rcond=None)[0]
        weights = 1 / np.maximum(np.abs(terms @ factors - wanted), 1.0)
    surface: Pixels = (_terms(*values.shape) @ factors).reshape(values.shape).clip(0, 255)
    return surface


def _terms(height: int, width: int) -> Pixels:
    """Return x^i y^j, i + j <= DEGREE, at every pixel, (H W, terms); x and y are in [-1, 1]."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    powers = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    return np.stack([(x**i * y**j).ravel() for i, j in powers], axis=1)


def _centre(ink: Pixels) -> tuple[float, float]:
    """Return the centre of mass (x, y) in pixels from the top left corner."""
    total = ink.sum()
    x = (ink.sum(axis=0) * (np.arange(ink.shape[1]) + 0.5)).sum() / total
    y = (ink.sum(axis=1) * (np.arange(ink.shape[0]) + 0.5)).sum() / total
    return float(x), float(y)


def _off_centre(ink: Pixels) -> float:
    """Return the distance of the centre of mass from the middle, along the worse axis."""
    (x, y), (height, width) = _centre(ink), ink.shape
    return float(max(abs(x - width / 2), abs(y - height / 2)))


def _on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the drawing on black. Each pixel is taken for a mixture of the background, the border's median, and the
    colour that differs most from it."""
    values = np.asarray(image, dtype=np.float64).reshape(image.height, image.width, -1)
    ground = np.median(_border(values), axis=0)
    if ground.max() <= NOISE:
        return image
    distance = np.linalg.norm(values - ground, axis=2)
    strongest = distance >= max(NOISE, 0.97 * float(distance.max()))
    notes.append(f"its ground of {', '.join(f'{value:.0f}' for value in ground)} made black")
    if not strongest.any():
        notes.append(BLANK)
        return Image.new(image.mode, image.size)
    colour = values[strongest].mean(axis=0)
    share = ((values - ground) @ (colour - ground) / np.square(colour - ground).sum()).clip(0, 1)
    pixels = np.rint(share[..., None] * colour).astype(np.uint8)
    if colour.max() < 100:
        notes.append(DRAWN_IN_BLACK)
    elif colour.max() - colour.min() < 0.25 * colour.max():
        notes.append(DRAWN_IN_GREY)
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])


def open_image(path: Path) -> tuple[Image.Image, list[str]]:
    """Return the image in its EXIF orientation, and notes. Raises `UserError` for an unreadable or huge one."""
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"there is no image {path}" if not path.exists() else f"{path} cannot be read: it is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise UserError(f"{path} has {file.width} x {file.height} pixels, over {MAX_PIXELS:,}")
                more = [f"the first of {frames} pictures"] if (frames := getattr(file, "n_frames", 1)) > 1 else []
                return _upright(file, str(path)), [f"{file.width} x {file.height}, mode {file.mode}", *more]
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {' or '.join(FORMATS)} ({error})") from error


def open_in_colour(path: Path) -> Image.Image:
    """Return an image file in RGB with 8 bits, upright, transparent pixels made black (white behind a dark drawing)."""
    image, notes = open_image(path)
    return _on_background(_eight_bit(image, notes), notes).convert("RGB")


def _upright(image: Image.Image, name: str) -> Image.Image:
    """Return the image in its EXIF orientation."""
    try:
        upright = ImageOps.exif_transpose(image)
        upright.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an image: {' or '.join(FORMATS)} ({error})") from error
    return upright


def _state(path: Path) -> NDArray[np.uint8]:
    """Return the image (H, W, C) in a state saved by Play."""
    if not path.is_file():
        raise UserError(f"there is no image {path}")
    try:
        if path.stat().st_size > MAX_STATE:
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
    """Return uint8 (H, W, C) of an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W)."""
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    values = source.numpy() if isinstance(source, Tensor) else source
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
        values = np.asarray(image, dtype=np.float64)
        most = float(values.max(initial=0))
        scale = 255.0 if image.mode == "F" and most <= 1 else 1.0 if image.mode in "IF" and most <= 255 else 1 / 257
        notes.append({255.0: "floats in [0, 1], brought to 8 bits"}.get(scale, "16 bits a pixel, brought to 8"))
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    return image


def _on_background(image: Image.Image, notes: list[str]) -> Image.Image:
    """Make transparent pixels black, or white behind a dark drawing."""
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
    """Return the outermost pixels, (n,) or (n, C)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
