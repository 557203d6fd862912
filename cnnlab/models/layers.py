"""What the networks are made of: layers as Keras has them, their output shapes, and their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError

Layers = dict[str, nn.Module]  # by name, one after another


class BatchNorm(nn.BatchNorm2d):
    """Keras's BatchNorm: epsilon 1e-3, and a momentum of 0.99 of the old, which PyTorch writes as 0.01.

    In evaluation, where it is one multiplication and addition a value, so is its gradient; PyTorch's own
    takes three times as long on a CPU, and the explanations are made of such gradients.
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
    """Let every BatchNorm keep `momentum` in [0, 1) of its running mean and variance at a step, in place."""
    if not 0 <= momentum < 1:
        raise UserError(f"bn_momentum={momentum} is not in [0, 1)")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = round(1 - momentum, 12)


class Dropout(nn.Dropout):
    """Dropout whose mask costs a fifth of PyTorch's on a CPU: 16 random bits a value, four values a draw. The
    rate is met to the nearest 1/65536. Raises `UserError` for a rate outside [0, 1)."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        if p == 1:
            raise UserError("net.dropout=1 drops everything; it must be below 1")

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device)
        bits = draws.random_(-(2**63), None).view(torch.int16)[: values.numel()]
        dropped = min(round(self.p * 65536), 65535)
        kept = torch.empty_like(values)  # 0 or the factor; in memory as the values are
        flat = kept.as_strided((values.numel(),), (1,))
        torch.ge(bits, dropped - 32768, out=flat).mul_(65536 / (65536 - dropped))
        return values * kept


class Flatten(nn.Flatten):
    """(B, C, H, W) to (B, H W C), as Keras flattens: nothing moves in memory where channels come last."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


def max_pool(stride: int, size: Sequence[int], to_the_edge: bool = False) -> nn.MaxPool2d:
    """Max-pooling of maps of `size` (..., H, W) by `stride`. What is left over at the right and at the bottom, where
    `stride` does not divide the size, is dropped, as is usual; `to_the_edge` makes the windows so much larger that they
    overlap and the last one ends at the edge. The output has the same size."""
    if not to_the_edge:
        return nn.MaxPool2d(stride)
    height, width = size[-2:]
    return nn.MaxPool2d((stride + height % stride, stride + width % stride), stride=stride)


class Residual(nn.Module):
    """What `layers` make of their input, and the input itself beside them, by a 1 x 1 convolution where the number of
    channels or the size changes, added and passed through a ReLU (He et al. 2016): (B, C, H, W) to
    (B, filters, h, w)."""

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
        summed: Tensor = self.relu(self.add(inner, self.shortcut(maps)))
        return summed


class Add(nn.Module):
    """The sum of two tensors of one shape, as a layer, which hooks see."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


HALVINGS = ("max", "avg", "blur")


def halving(kind: str) -> Layers:
    """The layers that halve maps: "max", max-pooling by 2; "avg", the mean of 2 x 2; "blur", the 3 x 3 triangle
    [1, 2, 1] before every second place is taken, as two means of 2 x 2 one after the other. The last two change little
    where the image moves by a pixel (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", Rect-2 and
    Tri-3)."""
    if kind == "blur":
        return {"blur": nn.AvgPool2d(2, stride=1, padding=1), "pool": nn.AvgPool2d(2)}
    return {"pool": nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)}


def output_shape(module: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what `module` makes of one input of `shape`, both without the batch; leaves the module in training
    mode. `UserError` where the input is too small for a kernel."""
    module.eval()
    try:
        with torch.no_grad():
            output: Tensor = module(torch.zeros(1, *shape))
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        raise UserError(f"net: its layers do not fit an input of {size}: {' '.join(str(error).split())}") from error
    module.train()
    return tuple(output.shape[1:])


def check_positive(**settings: int) -> None:
    """Raise `UserError` for a setting of the network that is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"net.{name}={value} must be at least 1")


def check_one_of(name: str, value: str, options: Sequence[str]) -> None:
    """Raise `UserError` for a value that is not among the options."""
    if value not in options:
        raise UserError(f"{name}={value}: choose one of {', '.join(options)}")


def keras_init(net: nn.Module) -> None:
    """Glorot-uniform kernels (Glorot and Bengio 2010) and zero biases, Keras's defaults, in place."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def parameter_counts(net: nn.Module) -> dict[str, int]:
    """{total, trainable, non_trainable} as Keras counts them: BatchNorm's running mean and variance are
    not trainable parameters."""
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    running = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    return {"total": trainable + frozen + running, "trainable": trainable, "non_trainable": frozen + running}
