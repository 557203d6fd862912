"""Dense layers, each computed by whichever library multiplies matrices quickly on this processor (see
`hardware.MULTIPLY_BY_ONEDNN`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cnnlab import hardware


class Dense(nn.Linear):
    """A dense layer, (B, inputs) to (B, units). While it is trained in float32, oneDNN multiplies where MKL is slow; it
    is differentiable once then."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)

    def forward(self, values: Tensor) -> Tensor:
        float32 = values.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if hardware.MULTIPLY_BY_ONEDNN and self.training and values.device.type == "cpu" and float32:
            outputs: Tensor = _OneDnnLinear.apply(values, self.weight, self.bias)
            return outputs
        return super().forward(values)


class PixelDense(nn.Conv2d):
    """A dense layer at every pixel, as Keras's on maps: a 1 x 1 convolution, (B, C, H, W) to (B, units, H, W)
    with channels last in memory.

    Computed as one matrix product of all pixels, which in float32 takes half of the convolution's time on Intel's
    processors; where MKL is slow as the convolution, in bfloat16 too. In the product the bias is the weight of a
    channel of ones: so neither it nor its gradient is a pass of its own.
    """

    def __init__(self, in_channels: int, units: int) -> None:
        super().__init__(in_channels, units, 1)

    def forward(self, maps: Tensor) -> Tensor:
        if hardware.MULTIPLY_BY_ONEDNN and maps.device.type == "cpu":
            return super().forward(maps.contiguous(memory_format=torch.channels_last))
        assert self.bias is not None
        pixels = maps.permute(0, 2, 3, 1)
        with_ones = F.pad(pixels.flatten(0, 2), (0, 1), value=1.0)
        weight = torch.cat([self.weight.flatten(1), self.bias[:, None]], dim=1)
        units = with_ones @ weight.t().contiguous()  # this way round its gradient is quicker, too
        return units.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


class _OneDnnLinear(torch.autograd.Function):
    """inputs (B, n), weight (units, n), bias (units,) -> (B, units), all float32, and their gradients, by oneDNN's
    inner product, to which PyTorch gives float32 no other way."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        inputs, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_inputs = _product(grads, weight.t()) if wanted[0] else None
        by_weight = _product(grads.t(), inputs.t()) if wanted[1] else None
        return by_inputs, by_weight, grads.sum(dim=0)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left (m, k) times the transpose of right (n, k), and the bias (n,) added."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product
