"""Images and maps as base64 in JSON, for the scripts of the pages."""

from __future__ import annotations

import base64

import torch
from torch import Tensor

from cnnlab import plots


def as_base64(values: Tensor) -> str:
    """Return the bytes of a tensor, row by row."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def in_colour(pixels: Tensor) -> Tensor:
    """Return images uint8 (N, C, H, W) as uint8 (N, 3, H, W): the first three channels, or the first as grey."""
    return pixels[:, :1].expand(-1, 3, -1, -1) if pixels.shape[1] < 3 else pixels[:, :3]


def levels(values: Tensor) -> Tensor:
    """Return values as bytes: 128 is zero, 1 and 255 are minus and plus the largest magnitude."""
    low, high = values.aminmax()
    most = torch.maximum(-low, high).clamp(min=1e-30)
    return (values * (127 / most)).round_().add_(128).to(torch.uint8)


def colour_tables() -> dict[str, str]:
    """Return the colours of `plots.heat_tables`."""
    return {name: base64.b64encode(table.tobytes()).decode() for name, table in plots.heat_tables().items()}
