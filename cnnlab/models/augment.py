"""Changes of the images that leave their classes as they are, a whole training batch at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.errors import UserError


class Affine(nn.Module):
    """Turns, stretches, shears and shifts each image of a batch by amounts of its own, uniform within the
    limits: `rotate` in degrees, `scale` as a part of the size, `shear` in pixels for a pixel, `shift` in
    pixels. Bilinear; what comes in from outside is black. Raises `UserError` for a negative limit."""

    def __init__(self, rotate: float, scale: float, shear: float, shift: float) -> None:
        super().__init__()
        for name, limit in (("rotate", rotate), ("scale", scale), ("shear", shear), ("shift", shift)):
            if not 0 <= limit < math.inf:
                raise UserError(f"augment.{name}={limit} must be at least 0")
        self.rotate, self.scale, self.shear, self.shift = rotate, scale, shear, shift

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, C, H, W), drawn from the global random state."""
        size, device = len(images), images.device
        turn, stretch, lean, right, down = (2 * torch.rand(5, size, device=device) - 1).unbind()
        angle = turn * math.radians(self.rotate)
        grow = 1 + stretch * self.scale
        cos, sin = angle.cos() / grow, angle.sin() / grow
        lean = lean * self.shear
        # From the new image's places to the old one's, in halves of the image's size.
        rows = [cos, cos * lean - sin, 2 * right * self.shift / images.shape[3],
                sin, sin * lean + cos, 2 * down * self.shift / images.shape[2]]  # fmt: skip
        maps = torch.stack(rows, dim=1).view(size, 2, 3)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Light(nn.Module):
    """Puts images on a grey ground, dims them, ground and all, and adds noise, by amounts of each image's own, each to
    half of them.

    `dim` is the share of the brightness that may be lost, `ground` the brightest grey that black may become, `noise`
    the largest deviation of the noise. Raises `UserError` for a limit outside [0, 1).
    """

    def __init__(self, dim: float, ground: float, noise: float) -> None:
        super().__init__()
        for name, limit in (("dim", dim), ("ground", ground), ("noise", noise)):
            if not 0 <= limit < 1:
                raise UserError(f"augment.{name}={limit} is not in 0..1, 1 left out")
        self.dim, self.ground, self.noise = dim, ground, noise

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (B, C, H, W) in [0, 1], drawn from the global random state."""
        drawn = torch.rand(2, 3, len(images), 1, 1, 1, device=images.device)
        dim, ground, noise = drawn[0] * (drawn[1] < 0.5)
        images = images + self.ground * ground * (1 - images.amax(dim=1, keepdim=True))
        images = images * (1 - self.dim * dim)
        noisy: Tensor = images + self.noise * noise * torch.randn_like(images)
        return noisy.clamp(0, 1)
