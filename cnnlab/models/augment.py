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
