"""The image around the line: black, another line, noise, or low contrast.

A background is a function of a 64-bit key and does not depend on the line. Two drawings on the same background differ
only where the lines do, which makes the ground truth exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.hashing import Keys, hash_u64, to_uniform
from cnnlab.data.rendering import ANGLES, IMAGE_SIZE, LENGTHS, WIDTHS, Lines, centre_bounds, coverage

# With noise, a line has LINE_SHARE of its brightness on a grey level of GREY, so that little of the noise, of standard
# deviation NOISE, is clipped. In grey levels of 0 to 255.
LINE_SHARE, GREY, NOISE = 0.6, 51.0, 25.5
MIN_CONTRAST = 0.2
BLUR = 5  # pixels of the square over which correlated noise is averaged, twice


def add_background(name: str, images: Tensor, keys: Keys) -> Tensor:
    """Return lines on black, uint8 (B, 3, 28, 28), on a background of `BACKGROUNDS`; `keys` uint64 (B,) are its random
    numbers."""
    return BACKGROUNDS[name](images, keys)


def _plain(images: Tensor, _keys: Keys) -> Tensor:
    return images


def _distractor(images: Tensor, keys: Keys) -> Tensor:
    """Put a white line of random length, width, angle and place below the line."""
    draws = [to_uniform(hash_u64(keys, place)) for place in range(5)]
    lengths, widths = torch.tensor(list(LENGTHS.values())), torch.tensor(list(WIDTHS.values()))
    turn = torch.tensor(list(ANGLES.values()))[(draws[2] * len(ANGLES)).long()]
    length, width = lengths[(draws[0] * len(lengths)).long()], widths[(draws[1] * len(widths)).long()]
    lines = Lines(length, width, turn.cos(), turn.sin())
    low, high = centre_bounds(lines)
    other = coverage(lines, low + torch.stack(draws[3:], dim=1) * (high - low))
    below = (255 - images.amax(dim=1).float()) * other
    return (images + below[:, None]).round_().to(torch.uint8)


def _noise(images: Tensor, keys: Keys) -> Tensor:
    """Dim the line on grey, with independent Gaussian noise in each pixel and channel."""
    return _on_grey(images, _normal(keys, 3))


def _correlated(images: Tensor, keys: Keys) -> Tensor:
    """Dim the line on grey, with smooth noise, the same in all channels: a suppressor (Clark et al. 2023)."""
    noise = _normal(keys, 1, IMAGE_SIZE + 2 * (BLUR - 1))
    for _ in range(2):
        noise = F.avg_pool2d(noise, BLUR, stride=1)
    triangle = F.conv1d(torch.full((1, 1, BLUR), 1 / BLUR), torch.full((1, 1, BLUR), 1 / BLUR), padding=BLUR - 1)
    return _on_grey(images, noise / triangle.square().sum())  # back to standard deviation 1


def _contrast(images: Tensor, keys: Keys) -> Tensor:
    """Dim the line to MIN_CONTRAST..1 of its brightness."""
    light = MIN_CONTRAST + (1 - MIN_CONTRAST) * to_uniform(hash_u64(keys, 0))
    return (images * light[:, None, None, None]).round_().to(torch.uint8)


BACKGROUNDS: dict[str, Callable[[Tensor, Keys], Tensor]] = {
    "plain": _plain, "distractor": _distractor, "noise": _noise, "correlated": _correlated, "contrast": _contrast,
}  # fmt: skip


def _on_grey(images: Tensor, noise: Tensor) -> Tensor:
    return (LINE_SHARE * images + GREY + NOISE * noise).round_().clamp_(0, 255).to(torch.uint8)


def _normal(keys: Keys, channels: int, size: int = IMAGE_SIZE) -> Tensor:
    """Return standard normal numbers float32 (B, channels, size, size): sums of the eight bytes of a hash, exact to 1 %
    up to three standard deviations."""
    pixels = hash_u64(keys[:, None], np.arange(channels * size**2, dtype=np.uint64)[None, :])
    sums = pixels.view(np.uint8).reshape(*pixels.shape, 8).sum(axis=2, dtype=np.int64)
    deviation = math.sqrt(8 * (256**2 - 1) / 12)
    normal = torch.from_numpy(((sums - 8 * 127.5) / deviation).astype(np.float32))
    return normal.view(len(keys), channels, size, size)
