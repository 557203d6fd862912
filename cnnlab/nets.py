"""The networks of the two reports. Each is a stem and one branch a head; layers have the names users say.

Every network is built from (in_channels, heads) and maps images float32 (B, C, 28, 28) to
{head name: logits (B, head.units)}. Every activation is a module of its own, used once and not in
place, so that hooks see each layer's output as it was. Initialisation and BatchNorm follow Keras, as
the reports did; parameter totals are those of the reports to the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab import IMAGE_SIZE, UserError
from cnnlab.heads import Head

Layers = dict[str, nn.Module]


class Net(nn.Module):
    """A stem, and for each head a branch that is named as the head is and ends in a layer `out`."""

    def __init__(self, heads: Sequence[Head], stem: Layers, branch: Callable[[Head], Layers]) -> None:
        super().__init__()
        self.head_names = tuple(head.name for head in heads)
        self.stem = _named(stem)
        for head in heads:
            self.add_module(head.name, _named(branch(head)))
        keras_init(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.stem(images)
        return {name: self.get_submodule(name)(features) for name in self.head_names}

    def last_kernels(self) -> list[Tensor]:
        """The weights (units, inputs) of every head's last layer."""
        return [self.get_submodule(f"{name}.out").get_parameter("weight") for name in self.head_names]


class Classifier1(Net):
    """Report B, sections 3.2 and 6.1: one convolution, one dense layer of 1,024 units.

    `dense` is "pixel" (the report's, applied at every pixel, a 1 x 1 convolution) or "flat" (Report A's,
    after flattening); `downsample` is "pool" or "stride" (the convolution strides instead).
    """

    def __init__(
        self,
        in_channels: int,
        heads: Sequence[Head],
        kernel_size: int = 7,
        filters: int = 32,
        downsample: str = "pool",
        dense: str = "pixel",
        dropout: float = 0.0,
    ) -> None:
        _one_of("net.downsample", downsample, ("pool", "stride"))
        _one_of("net.dense", dense, ("pixel", "flat"))
        _positive(filters=filters)
        stride = 2 if downsample == "stride" else 1
        size = _valid(IMAGE_SIZE, kernel_size, stride)
        stem: Layers = {
            "conv": nn.Conv2d(in_channels, filters, kernel_size, stride=stride),
            "relu": nn.ReLU(),
            "bn": _batch_norm(filters),
        }
        if downsample == "pool":
            stem["pool"] = nn.MaxPool2d(2)
            size = _valid(size, 2, 2)
        if dense == "pixel":
            stem |= {"dense": nn.Conv2d(filters, 1024, 1), "dense_relu": nn.ReLU()}
            stem |= {"dropout": _dropout(dropout), "flatten": nn.Flatten()}
            features = 1024 * size**2
        else:
            stem |= {"flatten": nn.Flatten(), "dense": nn.Linear(filters * size**2, 1024)}
            stem |= {"dense_relu": nn.ReLU(), "dropout": _dropout(dropout)}
            features = 1024
        super().__init__(heads, stem, lambda head: {"out": nn.Linear(features, head.units)})


class Deep(Net):
    """Report A's variations 4 and 5: three convolutions and a dense layer, four dropouts."""

    def __init__(
        self,
        in_channels: int,
        heads: Sequence[Head],
        dropout: Sequence[float] | float = (0.2, 0.25, 0.25, 0.25),
    ) -> None:
        rates = [dropout] * 4 if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != 4:
            raise UserError(f"net.dropout={rates}: give one rate, or one for each of the four places")
        stem: Layers = {
            "conv1": nn.Conv2d(in_channels, 32, 3),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),  # (B, 32, 13, 13)
            "dropout1": _dropout(rates[0]),
            "conv2": nn.Conv2d(32, 64, 3, padding="same"),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),  # (B, 64, 6, 6)
            "dropout2": _dropout(rates[1]),
            "conv3": nn.Conv2d(64, 128, 3, padding="same"),
            "relu3": nn.ReLU(),
            "dropout3": _dropout(rates[2]),
            "bn": _batch_norm(128),
            "flatten": nn.Flatten(),
            "dense": nn.Linear(128 * 6 * 6, 1024),
            "dense_relu": nn.ReLU(),
            "dropout4": _dropout(rates[3]),
        }
        super().__init__(heads, stem, lambda head: {"out": nn.Linear(1024, head.units)})


class Shared(Net):
    """One feature extractor, and for each head only dense layers: Report A's v1 to v3, Report B's Figure 5.

    `convs` lists the convolutions, each a mapping with `filters`, `kernel_size`, `padding` ("same" or
    "valid") and, where a max-pooling of 2 follows, `pool_stride`. `hidden` names for each head the
    widths of its dense layers. `batch_norm` puts BatchNorm between convolution and ReLU. `head_std`
    draws the heads' kernels and biases from N(0, head_std²) instead of Keras's default.
    """

    def __init__(
        self,
        in_channels: int,
        heads: Sequence[Head],
        convs: Sequence[Mapping[str, Any]],
        hidden: Mapping[str, Sequence[int]],
        batch_norm: bool = False,
        dropout: float = 0.0,
        head_std: float | None = None,
    ) -> None:
        stem: Layers = {}
        channels, size = in_channels, IMAGE_SIZE
        for number, conv in enumerate(convs, start=1):
            filters, kernel, padding = conv["filters"], conv["kernel_size"], conv["padding"]
            _one_of("padding", padding, ("same", "valid"))
            stem[f"conv{number}"] = nn.Conv2d(channels, filters, kernel, padding=padding)
            if batch_norm:
                stem[f"bn{number}"] = _batch_norm(filters)
            stem[f"relu{number}"] = nn.ReLU()
            channels, size = filters, size if padding == "same" else _valid(size, kernel)
            if "pool_stride" in conv:
                stem[f"pool{number}"] = nn.MaxPool2d(2, stride=conv["pool_stride"])
                size = _valid(size, 2, conv["pool_stride"])
        stem |= {"dropout": _dropout(dropout), "flatten": nn.Flatten()}

        def branch(head: Head) -> Layers:
            if head.name not in hidden:
                raise UserError(f"net.hidden says nothing of head '{head.name}', only of {', '.join(hidden)}")
            layers: Layers = {}
            features = channels * size**2
            for number, units in enumerate(hidden[head.name], start=1):
                layers |= {f"dense{number}": nn.Linear(features, units), f"relu{number}": nn.ReLU()}
                features = units
            return layers | {"out": nn.Linear(features, head.units)}

        super().__init__(heads, stem, branch)
        if head_std is not None:
            for name in self.head_names:
                for parameter in self.get_submodule(name).parameters():
                    nn.init.normal_(parameter, std=head_std)


class Branched(Net):
    """Report B, section 7.1: a shared convolution, then convolutions of each head's own.

    A head of more than two classes gets two convolutions of twice the filters, as `angle` does there.
    """

    def __init__(
        self, in_channels: int, heads: Sequence[Head], filters: int = 32, dropout: float = 0.25
    ) -> None:
        _positive(filters=filters)
        stem: Layers = {
            "conv": nn.Conv2d(in_channels, filters, 3, padding="same"),
            "relu": nn.ReLU(),
            "bn": _batch_norm(filters),
            "pool": nn.MaxPool2d(3),  # (B, filters, 9, 9)
            "dropout": _dropout(dropout),
        }

        def branch(head: Head) -> Layers:
            depth, width = (1, filters) if head.units == 1 else (2, 2 * filters)
            layers: Layers = {}
            for number in range(1, depth + 1):
                before = filters if number == 1 else width
                suffix = str(number) if depth > 1 else ""
                layers[f"conv{suffix}"] = nn.Conv2d(before, width, 3, padding="same")
                layers[f"relu{suffix}"] = nn.ReLU()
                layers[f"bn{suffix}"] = _batch_norm(width)
            layers |= {"pool": nn.MaxPool2d(2), "dropout": _dropout(dropout), "flatten": nn.Flatten()}
            return layers | {"out": nn.Linear(width * 4 * 4, head.units)}

        super().__init__(heads, stem, branch)


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
    return {
        "total": trainable + frozen + running,
        "trainable": trainable,
        "non_trainable": frozen + running,
    }


def layer_table(net: nn.Module, in_channels: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, type, output shape without the batch, parameters) of every layer, in the order they run."""
    rows = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: object, output: Tensor) -> None:
            count = parameter_counts(module)["total"]
            rows.append((name, type(module).__name__, tuple(output.shape[1:]), count))

        return hook

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    training = net.training
    try:
        net.eval()
        with torch.no_grad():
            net(torch.zeros(1, in_channels, IMAGE_SIZE, IMAGE_SIZE))
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return rows


def _named(layers: Layers) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Keras's BatchNorm: epsilon 1e-3, and a momentum of 0.99 of the old, which PyTorch writes as 0.01."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _dropout(rate: float) -> nn.Dropout:
    if not 0 <= rate < 1:
        raise UserError(f"net.dropout={rate} is not in [0, 1)")
    return nn.Dropout(rate)


def _valid(size: int, kernel_size: int, stride: int = 1) -> int:
    """The size that a valid convolution or pooling leaves of `size`."""
    _positive(kernel_size=kernel_size, stride=stride)
    if kernel_size > size:
        raise UserError(f"net.kernel_size={kernel_size} is larger than the {size} x {size} pixels it meets")
    return (size - kernel_size) // stride + 1


def _positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"net.{name}={value} must be at least 1")


def _one_of(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise UserError(f"{name}={value}: choose one of {', '.join(options)}")
