"""What stands in an image beside the line: nothing, another line, noise, or little light.

A scene is a function of a 64-bit key of the image and leaves the line's own drawing alone: two lines drawn in the same
scene differ only where the lines do, which is what makes the true pixels exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.hashing import Keys, hash_u64, unit
from cnnlab.data.rendering import ANGLES, IMAGE_SIZE, LENGTHS, WIDTHS, Lines, centre_bounds, coverage

# With noise the line is drawn at LIT of its brightness on a ground of GROUND, so that little of the noise, of deviation
# NOISE, is cut off at black and at full brightness. All in grey levels of 0 to 255.
LIT, GROUND, NOISE = 0.6, 51.0, 25.5
DIMMEST = 0.2  # of the lines of a scene "contrast"
BLUR = 5  # pixels of the square over which correlated noise is averaged, twice


def compose(scene: str, images: Tensor, keys: Keys) -> Tensor:
    """Lines on black, uint8 (B, 3, 28, 28), in a scene of `SCENES`, uint8 of the same shape; `keys` uint64 (B,) say
    which of the scene's kind."""
    return SCENES[scene](images, keys)


def _plain(images: Tensor, _keys: Keys) -> Tensor:
    """Nothing but the line."""
    return images


def _distractor(images: Tensor, keys: Keys) -> Tensor:
    """Another line of any kind, white, anywhere below it: it may cross the line and says nothing of the answers."""
    at = [unit(hash_u64(keys, place)) for place in range(5)]
    lengths, widths = torch.tensor(list(LENGTHS.values())), torch.tensor(list(WIDTHS.values()))
    turn = torch.tensor(list(ANGLES.values()))[(at[2] * len(ANGLES)).long()]
    length, width = lengths[(at[0] * len(lengths)).long()], widths[(at[1] * len(widths)).long()]
    lines = Lines(length, width, turn.cos(), turn.sin())
    low, high = centre_bounds(lines)
    other = coverage(lines, low + torch.stack(at[3:], dim=1) * (high - low))
    ground = (255 - images.amax(dim=1).float()) * other
    return (images + ground[:, None]).round_().to(torch.uint8)


def _noise(images: Tensor, keys: Keys) -> Tensor:
    """A dimmer line on grey, with Gaussian noise, of each pixel and channel by itself."""
    return _add(images, _normal(keys, 3))


def _correlated(images: Tensor, keys: Keys) -> Tensor:
    """A dimmer line on grey, with smooth noise of the same strength, the same in all channels: the ground around the
    line tells what must be taken away from it (a suppressor, after Clark et al. 2023)."""
    noise = _normal(keys, 1, IMAGE_SIZE + 2 * (BLUR - 1))
    for _ in range(2):
        noise = F.avg_pool2d(noise, BLUR, stride=1)
    triangle = F.conv1d(torch.full((1, 1, BLUR), 1 / BLUR), torch.full((1, 1, BLUR), 1 / BLUR), padding=BLUR - 1)
    return _add(images, noise / triangle.square().sum())  # which the noise's deviation is now, along both axes


def _contrast(images: Tensor, keys: Keys) -> Tensor:
    """The line alone, at DIMMEST to 1 of its brightness."""
    light = DIMMEST + (1 - DIMMEST) * unit(hash_u64(keys, 0))
    return (images * light[:, None, None, None]).round_().to(torch.uint8)


SCENES: dict[str, Callable[[Tensor, Keys], Tensor]] = {
    "plain": _plain, "distractor": _distractor, "noise": _noise, "correlated": _correlated, "contrast": _contrast,
}  # fmt: skip


def _add(images: Tensor, noise: Tensor) -> Tensor:
    return (LIT * images + GROUND + NOISE * noise).round_().clamp_(0, 255).to(torch.uint8)


def _normal(keys: Keys, channels: int, size: int = IMAGE_SIZE) -> Tensor:
    """Numbers of mean 0 and deviation 1, float32 (B, channels, size, size): the sum of the eight bytes of a hash,
    which is normal to within a hundredth up to three deviations."""
    pixels = hash_u64(keys[:, None], np.arange(channels * size**2, dtype=np.uint64)[None, :])
    sums = pixels.view(np.uint8).reshape(*pixels.shape, 8).sum(axis=2, dtype=np.int64)
    deviation = math.sqrt(8 * (256**2 - 1) / 12)
    normal = torch.from_numpy(((sums - 8 * 127.5) / deviation).astype(np.float32))
    return normal.view(len(keys), channels, size, size)
