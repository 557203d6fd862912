"""Layers as Keras has them, and helpers to build networks from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Layers = dict[str, nn.Module]  # by name, one after another
DOWNSAMPLE = ("max", "avg", "blur")


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with Keras's epsilon, 1e-3, and momentum, 0.01 in PyTorch's convention.

    In evaluation it is one multiplication and addition per value. PyTorch's own gradient takes three times as long on
    a CPU there, and explanations are made of such gradients.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, maps: Tensor) -> Tensor:
        if self.training or maps.dtype != self.weight.dtype:
            return super().forward(maps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None, None], maps, scale[:, None, None])


def set_bn_momentum(net: nn.Module, momentum: float) -> None:
    """Set the momentum of every BatchNorm, in place: the share in (0, 1] of a batch in the running statistics."""
    if not 0 < momentum <= 1:
        raise ValueError(f"bn_momentum={momentum} is not in (0, 1]")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


class Dropout(nn.Dropout):
    """Dropout with 16 random bits per value, which costs a fifth of PyTorch's on a CPU. The rate is exact to 1/65536.
    Raises `ValueError` for a rate outside [0, 1)."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        if p == 1:
            raise ValueError("dropout=1 drops everything; it must be below 1")

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device)
        bits = draws.random_(-(2**63), None).view(torch.int16)[: values.numel()]
        dropped = min(round(self.p * 65536), 65535)
        kept = torch.empty_like(values)  # keeps the memory format
        flat = kept.as_strided((values.numel(),), (1,))
        torch.ge(bits, dropped - 32768, out=flat).mul_(65536 / (65536 - dropped))
        return values * kept


class Flatten(nn.Flatten):
    """Flatten (B, C, H, W) to (B, H W C), as Keras does: no copy where channels come last in memory."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


class Add(nn.Module):
    """The sum of two tensors as a layer, which hooks see."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Residual(nn.Module):
    """A residual block of two 3 x 3 convolutions (He et al. 2016): (B, channels, H, W) to (B, filters, h, w). The
    shortcut is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.bn_a, self.relu_a = BatchNorm(filters), nn.ReLU()
        self.conv_b, self.bn_b = nn.Conv2d(filters, filters, 3, padding=1, bias=False), BatchNorm(filters)
        same = channels == filters and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, filters, 1, stride=stride)
        self.add, self.relu = Add(), nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn_b(self.conv_b(self.relu_a(self.bn_a(self.conv_a(maps)))))
        output: Tensor = self.relu(self.add(inner, self.shortcut(maps)))
        return output


def max_pool(stride: int, size: Sequence[int], overlapping: bool = False) -> nn.MaxPool2d:
    """Return max-pooling of maps (..., H, W) = `size` by `stride`. Rows and columns that are left over are dropped;
    with `overlapping` the windows are larger instead, so that the last one ends at the edge. The output has the same
    size either way."""
    if not overlapping:
        return nn.MaxPool2d(stride)
    height, width = size[-2:]
    return nn.MaxPool2d((stride + height % stride, stride + width % stride), stride=stride)


def downsample_layers(kind: str) -> Layers:
    """Return the layers that halve maps: "max", max-pooling; "avg", mean-pooling; "blur", the 3 x 3 triangle filter at
    every second place, robust to shifts of the image by a pixel (Zhang 2019, Tri-3)."""
    check_one_of("downsample", kind, DOWNSAMPLE)
    if kind == "blur":
        return {"blur": nn.AvgPool2d(2, stride=1, padding=1), "pool": nn.AvgPool2d(2)}
    return {"pool": nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)}


def output_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the output of `module` for one input of `shape`, both without the batch. Leaves the module in
    training mode. Raises `ValueError` where the input is too small for a kernel."""
    module.eval()
    try:
        with torch.no_grad():
            output: Tensor = module(torch.zeros(1, *shape))
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        raise ValueError(f"its layers do not fit an input of {size}: {' '.join(str(error).split())}") from error
    module.train()
    return tuple(output.shape[1:])


def check_positive(**settings: int) -> None:
    """Raise `ValueError` for a setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def check_one_of(name: str, value: str, options: Sequence[str]) -> None:
    """Raise `ValueError` for a value that is not among the options."""
    if value not in options:
        raise ValueError(f"{name}={value}: choose one of {', '.join(options)}")


def keras_init(net: nn.Module) -> None:
    """Set Glorot-uniform kernels (Glorot and Bengio 2010) and zero biases, Keras's defaults, in place."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def parameter_counts(net: nn.Module) -> dict[str, int]:
    """Return {total, trainable, non_trainable} as Keras counts them: BatchNorm's running statistics are non-trainable
    parameters."""
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    running = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return {"total": trainable + frozen + running, "trainable": trainable, "non_trainable": frozen + running}
