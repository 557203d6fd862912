"""Augmentations of a whole training batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.utils.errors import UserError


class Affine(nn.Module):
    """Rotate, scale, shear and shift each image by random amounts, uniform within the limits: `rotate` in degrees,
    `scale` relative to the size, `shear` in pixels per pixel, `shift` in pixels. Bilinear, with black borders. Raises
    `UserError` for a negative limit."""

    def __init__(self, rotate: float, scale: float, shear: float, shift: float) -> None:
        super().__init__()
        for name, limit in (("rotate", rotate), ("scale", scale), ("shear", shear), ("shift", shift)):
            if not 0 <= limit < math.inf:
                raise UserError(f"augment.{name}={limit} must be at least 0")
        self.rotate, self.scale, self.shear, self.shift = rotate, scale, shear, shift

    def forward(self, images: Tensor) -> Tensor:
        """Return changed images float32 (B, C, H, W), by the global random state."""
        size, device = len(images), images.device
        turn, stretch, lean, right, down = (2 * torch.rand(5, size, device=device) - 1).unbind()
        angle = turn * math.radians(self.rotate)
        grow = 1 + stretch * self.scale
        cos, sin = angle.cos() / grow, angle.sin() / grow
        lean = lean * self.shear
        height, width = images.shape[2:]
        # From new to old coordinates, in halves of the image's size.
        rows = [cos, (cos * lean - sin) * height / width, 2 * right * self.shift / width,
                sin * width / height, sin * lean + cos, 2 * down * self.shift / height]  # fmt: skip
        maps = torch.stack(rows, dim=1).view(size, 2, 3)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Light(nn.Module):
    """Put images on grey, dim them and add noise, each to half of the images by random amounts.

    `dim` is the largest loss of brightness, `ground` the brightest grey of black, `noise` the largest standard
    deviation. Raises `UserError` for a limit outside [0, 1).
    """

    def __init__(self, dim: float, ground: float, noise: float) -> None:
        super().__init__()
        for name, limit in (("dim", dim), ("ground", ground), ("noise", noise)):
            if not 0 <= limit < 1:
                raise UserError(f"augment.{name}={limit} is not in [0, 1)")
        self.dim, self.ground, self.noise = dim, ground, noise

    def forward(self, images: Tensor) -> Tensor:
        """Return changed images float32 (B, C, H, W) in [0, 1], by the global random state."""
        drawn = torch.rand(2, 3, len(images), 1, 1, 1, device=images.device)
        dim, ground, noise = drawn[0] * (drawn[1] < 0.5)
        images = images + self.ground * ground * (1 - images.amax(dim=1, keepdim=True))
        images = images * (1 - self.dim * dim)
        noisy: Tensor = images + self.noise * noise * torch.randn_like(images)
        return noisy.clamp(0, 1)
