"""Which images are explained: image files from outside, or images of the test split that a person would
pick."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from cnnlab.data.datamodule import BatchedDataset
from cnnlab.errors import UserError
from cnnlab.explain.network import frozen_copy
from cnnlab.models.heads import Head

LONGEST = 4096  # pixels of a side with which an image is worked on
MOST_PIXELS = 50_000_000  # of an image file; a larger one is refused before it is unpacked


@dataclass(frozen=True)
class Inputs:
    """Images uint8 (N, C, H, W), a name for each, {head: true class int64 (N,)} where it is known, and
    notes on what was done to an image from outside."""

    images: Tensor
    names: list[str]
    truth: dict[str, Tensor] | None = None
    notes: list[list[str]] = field(default_factory=list)


def from_split(split: BatchedDataset, indices: list[int]) -> Inputs:
    """Images of a split. Raises `UserError` for an index beyond it."""
    beyond = [index for index in indices if not 0 <= index < len(split)]
    if beyond:
        raise UserError(f"indices: {beyond[0]} is not in 0..{len(split) - 1}, the test split")
    rows = torch.tensor(indices)
    return Inputs(split.images(rows), [f"test image {index}" for index in indices], split.targets(rows))


def pick(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset, count: int) -> list[int]:
    """Indices of `count` images that differ most in their classes, in order; where the network errs on any,
    the first is the mistake that it is surest of."""
    chosen: list[int] = []
    mistake = _surest_mistake(net, heads, split)
    if mistake is not None:
        chosen.append(mistake)
    rows = torch.arange(min(len(split), 2000))
    classes = torch.stack([part for part in _parts(heads, split.targets(rows))], dim=1)  # (rows, parts)
    first = classes.new_zeros(0, classes.shape[1]) if not chosen else _row(heads, split, chosen[0])
    taken = first
    while len(chosen) < min(count, len(split)):
        # How unlike the chosen ones an image is: first the least unlike, then the sum.
        unlike = (classes[:, None] != taken[None]).sum(dim=2) if len(taken) else torch.zeros(len(rows), 1)
        merit = unlike.amin(dim=1) * 1000 + unlike.sum(dim=1)
        merit[[index for index in chosen if index < len(rows)]] = -1
        best = int(merit.argmax())
        chosen.append(best)
        taken = torch.cat([taken, classes[best : best + 1]])
    return chosen


def _row(heads: tuple[Head, ...], split: BatchedDataset, index: int) -> Tensor:
    return torch.stack(list(_parts(heads, split.targets(torch.tensor([index])))), dim=1)


def _parts(heads: tuple[Head, ...], targets: dict[str, Tensor]) -> list[Tensor]:
    """The classes of all heads; of a head that is a product, the classes of its parts."""
    found: list[Tensor] = []
    for head in heads:
        if head.parts:
            found += torch.unravel_index(targets[head.name], tuple(len(part.classes) for part in head.parts))
        else:
            found.append(targets[head.name])
    return found


def _surest_mistake(net: nn.Module, heads: tuple[Head, ...], split: BatchedDataset) -> int | None:
    found: tuple[float, int] | None = None
    net = frozen_copy(net)
    with torch.no_grad():
        for rows in torch.arange(len(split)).split(500):
            logits = net(split.inputs(rows))
            targets = split.targets(rows)
            for head in heads:
                sure, said = head.probabilities(logits[head.name]).max(dim=1)
                sure = torch.where(said == targets[head.name], 0.0, sure)
                best = int(sure.argmax())
                if sure[best] > 0 and (found is None or sure[best].item() > found[0]):
                    found = (sure[best].item(), int(rows[best]))
    return found[1] if found else None


def from_files(paths: list[Path], image_shape: tuple[int, int, int]) -> Inputs:
    """Image files, each brought to `image_shape` (C, H, W), C 1 or 3. Raises `UserError` where there is none."""
    if not paths:
        raise UserError("image=[]: name at least one image file")
    read = [read_image(path, image_shape) for path in paths]
    return Inputs(torch.stack([image for image, _ in read]), [path.name for path in paths], None, [n for _, n in read])


def read_image(path: Path, image_shape: tuple[int, int, int]) -> tuple[Tensor, list[str]]:
    """A PNG or JPEG of any size and mode as uint8 (C, H, W) = `image_shape`, with notes on what was done to it.

    Raises `UserError` where there is no such image, or it is broken or absurdly large.
    """
    channels, height, width = image_shape
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"there is no image {path}" if not path.exists() else f"{path} cannot be read: it is no file")
    try:
        image, notes = _opened(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as a PNG or JPEG image ({error})") from error
    image = _eight_bit(image, notes)
    image = _on_background(image, notes)
    image = image.convert("L" if channels == 1 else "RGB")
    if channels == 1 and _border(image) > 127:
        image = ImageOps.invert(image)
        notes.append("dark on light, inverted")
    if max(image.size) > LONGEST:  # before it is made square
        image.thumbnail((LONGEST, LONGEST))
        notes.append(f"scaled to {image.width} x {image.height}")
    if image.width * height != image.height * width:
        scale = max(math.ceil(image.width / width), math.ceil(image.height / height))
        side = (scale * width, scale * height) if height != width else (max(image.size),) * 2
        image = ImageOps.pad(image, side, color=0)
        notes.append(f"padded with black to {side[0]} x {side[1]}")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        notes.append(f"resized to {width} x {height}")
    pixels = torch.from_numpy(np.array(image)).view(height, width, channels)
    return pixels.permute(2, 0, 1).contiguous(), notes


def _opened(path: Path) -> tuple[Image.Image, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UserError(f"{path} has {file.width} x {file.height} pixels, over {MOST_PIXELS:,}")
            image = ImageOps.exif_transpose(file)
            image.load()
            return image, [f"{file.width} x {file.height}, mode {file.mode}"]


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


def _border(image: Image.Image) -> float:
    """The median of the outermost pixels."""
    pixels = np.asarray(image)
    return float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
