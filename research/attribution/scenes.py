"""Scenes of lines for the benchmark: alone, above a second line, or on a photograph.

The second line has the colours of the first. A part of a photograph has every colour from black to pure red, pure blue
and both, so that the colour of a pixel says little about whether it belongs to the line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.image import imread
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.hashing import hash_u64, to_uniform
from cnnlab.data.lines import LineDataModule, LineDataset
from cnnlab.data.rendering import ANGLES, IMAGE_SIZE, LENGTHS, WIDTHS, Lines, centre_bounds, coverage
from cnnlab.data.sampling import LineSampler
from cnnlab.utils.errors import UserError

SCENES = ("plain", "second_line", "photos")
BORDER = (10.0, 18.0)  # pixels: between them lies the border of the upper and the lower line
GAP = 1.0  # pixels between the border and a centre
EXTREME = 0.05  # the share of a photograph's pixels that become black, and the share that become white
COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}  # the part of a photograph of each split
_STREAM = 2**32 + 5  # of random numbers


@cache
def photographs(scale: int) -> tuple[Tensor, ...]:
    """Return the photographs that scikit-learn and Matplotlib ship in grey, float32 (H, W) in [0, 1], `scale` times
    smaller."""
    pictures = [*load_sample_images().images, imread(get_sample_data("grace_hopper.jpg", asfileobj=False))]
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 for picture in pictures]
    return tuple(F.avg_pool2d(picture, scale).mean(dim=0) for picture in tensors)


@cache
def parts(scale: int, size: int, split: str) -> tuple[tuple[Tensor, list[list[int]]], ...]:
    """Return each photograph, and the corners (y, x) of its parts of `size` pixels in a split's columns: the half of
    all with the most contrast."""
    choices = []
    for picture in photographs(scale):
        first, last = (int(share * picture.shape[1]) for share in COLUMNS[split])
        mean, mean_square = (F.avg_pool2d(values[None, :, first:last], size, 1)[0] for values in (picture, picture**2))
        contrast = mean_square - mean**2
        y, x = (contrast >= contrast.median()).nonzero().T
        choices.append((picture, torch.stack([y, x + first], dim=1).tolist()))
    return tuple(choices)


@dataclass(frozen=True)
class SceneSampler(LineSampler):
    """A `LineSampler` that puts its lines into a scene of `size` x `size` pixels."""

    scene: str = "plain"
    size: int = IMAGE_SIZE

    def centres(self, indices: Tensor, class_ids: Tensor) -> Tensor:
        """Return centres float32 (B, 2); in the scene "second_line" they lie above the border."""
        centres = super().centres(indices, class_ids)
        if self.scene == "second_line":
            low, high = (bound[:, 1] for bound in centre_bounds(Lines.from_class_ids(class_ids)))
            share = (centres[:, 1] - low) / (high - low)
            centres[:, 1] = low + share * (self._border(indices) - GAP - low)
        return centres

    def add_background(self, images: Tensor, indices: Tensor) -> Tensor:
        """Return lines on black, uint8 (B, 3, 28, 28), in their scene, uint8 (B, 3, size, size)."""
        if self.scene == "plain":
            return images
        if self.scene == "second_line":
            behind = self._second_line(indices)
        else:
            red, blue = (255 * self._grey_part(indices, first) for first in (1, 6))
            behind, images = torch.stack([red, torch.zeros_like(red), blue], dim=1), self._placed(images, indices)
        lines = images.float()
        drawn = lines + (1 - lines.amax(dim=1, keepdim=True) / 255) * behind
        return drawn.round_().to(torch.uint8)

    def _draw(self, indices: Tensor, number: int) -> Tensor:
        """Return the random numbers of that number, uniform in [0, 1), float32 (B,)."""
        return to_uniform(hash_u64(self._keys(indices, _STREAM), number))

    def _border(self, indices: Tensor) -> Tensor:
        return BORDER[0] + (BORDER[1] - BORDER[0]) * self._draw(indices, 0)

    def _second_line(self, indices: Tensor) -> Tensor:
        """Return a red or blue line of any kind below the border, float32 (B, 3, 28, 28) in [0, 255]."""

        def choose(values: Any, number: int) -> Tensor:
            return torch.tensor(list(values))[(self._draw(indices, number) * len(values)).long()]

        angles = choose(ANGLES.values(), 1)
        lines = Lines(choose(LENGTHS.values(), 2), choose(WIDTHS.values(), 3), angles.cos(), angles.sin())
        low, high = centre_bounds(lines)
        low[:, 1] = self._border(indices) + GAP
        places = torch.stack([self._draw(indices, 4), self._draw(indices, 5)], dim=1)
        covered = 255 * coverage(lines, low + places * (high - low))
        red = (self._draw(indices, 6) < 0.5)[:, None, None]
        return torch.stack([covered * red, torch.zeros_like(covered), covered * ~red], dim=1)

    def _grey_part(self, indices: Tensor, number: int) -> Tensor:
        """Return grey parts of photographs with the most contrast, float32 (B, size, size) in [0, 1]: see `EXTREME`."""
        choices, grey = parts(2 if self.size == IMAGE_SIZE else 1, self.size, self.split), []
        which, where = (self._draw(indices, number + offset).tolist() for offset in range(2))
        for choice, place in zip(which, where, strict=True):
            picture, corners = choices[int(choice * len(choices))]
            y, x = corners[int(place * len(corners))]
            grey.append(picture[y : y + self.size, x : x + self.size])
        part = torch.stack(grey)
        black, white = part.flatten(1).quantile(torch.tensor([EXTREME, 1 - EXTREME]), dim=1)[..., None, None]
        stretched: Tensor = (part - black) / (white - black)
        return stretched.clamp(0, 1)

    def _placed(self, images: Tensor, indices: Tensor) -> Tensor:
        """Return the lines anywhere in a larger image, uint8 (B, 3, size, size)."""
        free = self.size - IMAGE_SIZE
        if not free:
            return images
        larger = images.new_zeros(len(images), 3, self.size, self.size)
        down, across = ((self._draw(indices, number) * (free + 1)).long().tolist() for number in (4, 5))
        for target, image, y, x in zip(larger, images, down, across, strict=True):
            target[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] = image
        return larger


class SceneDataModule(LineDataModule):
    """Red and blue lines in a scene of `SCENES`.

    Args:
        scene: "plain", "second_line" or "photos".
        size: Height and width in pixels; above 28 only with photographs.
        settings: Those of `LineDataModule`.
    """

    def __init__(self, scene: str = "plain", size: int = IMAGE_SIZE, **settings: Any) -> None:
        super().__init__(**settings)
        if scene not in SCENES:
            raise UserError(f"data.scene={scene}: choose one of {', '.join(SCENES)}")
        if size < IMAGE_SIZE or (size > IMAGE_SIZE and scene != "photos"):
            raise UserError(f"data.size={size}: choose {IMAGE_SIZE}, or more with data.scene=photos")
        self.image_shape = (3, size, size)
        self.samplers = {split: SceneSampler(self.seed, split, scene=scene, size=size)
                         for split in self.names}  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Images with the same scenes but another answer.

    `images` float32 (N, 3, H, W); `targets` {head: int64 (N,)}; `others` {head: float32 (K, N, 3, H, W)}, the K other
    answers (for an angle those 15° beside it).
    """

    images: Tensor
    targets: dict[str, Tensor]
    others: dict[str, Tensor]

    def changes(self, head: str) -> Tensor:
        """Return by how much each pixel changes with the head's answer, float32 (N, H, W): the sum of the channels'
        differences, the mean over the other answers."""
        return (self.others[head] - self.images).abs().sum(dim=2).mean(dim=0)


def pairs(module: SceneDataModule, count: int = 96, split: str = "test") -> Pairs:
    """Return the first `count` images of a split; 96 are one of each kind."""
    module.setup()
    dataset, rows = module.splits[split], torch.arange(count)
    assert isinstance(dataset, LineDataset)
    others = {head.name: dataset.counterfactuals(rows, head).float() / 255 for head in module.heads}
    return Pairs(dataset.images(rows).float() / 255, dataset.targets(rows), others)
