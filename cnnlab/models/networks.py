"""The networks of the two reports, and two more. Each has a stem and one branch per head.

A network is built from (image_shape, heads) and maps images float32 (B, C, H, W) to {head name: logits (B, units)}.
Every activation is a module, used once and not in place, so that hooks see each layer's output. Initialisation and
BatchNorm follow Keras, as in the reports; parameter totals equal the reports'. Bad settings raise `ValueError`.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from cnnlab.models.heads import Head
from cnnlab.models.layers import (
    BatchNorm,
    Dropout,
    Flatten,
    Layers,
    Residual,
    check_one_of,
    check_positive,
    downsample_layers,
    keras_init,
    max_pool,
    output_shape,
)

Shape = Sequence[int]  # (C, H, W) of an image or of maps, (features,) after flattening


class MultiHeadNet(nn.Module):
    """A stem, and for each head a branch of the head's name that ends in the dense layer `out`.

    `branch` takes a head and the shape of its input and returns the layers before `out`. With `color_heads` the stem
    sees the brightness alone, one channel; the branches of these heads see the image, through stems of their own.
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        stem: Layers,
        branch: Callable[[Head, Shape], Layers] = lambda _head, _shape: {},
        color_heads: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.heads, self.color_heads = tuple(heads), tuple(color_heads)
        self.head_names = tuple(head.name for head in heads)
        self.stem = nn.Sequential(OrderedDict(stem))
        features = output_shape(self.stem, (1 if color_heads else image_shape[0], *image_shape[1:]))
        for head in heads:
            seen = image_shape if head.name in color_heads else features
            layers = nn.Sequential(OrderedDict(branch(head, seen)))
            layers.add_module("out", nn.Linear(math.prod(output_shape(layers, seen)), head.units))
            self.add_module(head.name, layers)
        keras_init(self)

    def forward(self, images: Tensor, heads: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return {head: logits (B, units)} of all heads, or of `heads`; other branches do not run."""
        # The V of HSV: red, blue and green lines are equal.
        seen = images.amax(dim=1, keepdim=True) if self.color_heads else images
        features = self.stem(seen)
        return {
            name: getattr(self, name)(images if name in self.color_heads else features)
            for name in (self.head_names if heads is None else heads)
        }

    def head_weights(self) -> list[Tensor]:
        """Return the weights (units, inputs) of every head's last layer."""
        return [self.get_submodule(f"{name}.out").get_parameter("weight") for name in self.head_names]


class Classifier1(MultiHeadNet):
    """Report B, sections 3.2 and 6.1: one convolution, one dense layer of 1,024 units.

    `dense` is "pixel" (Report B's, at every pixel, a 1 x 1 convolution) or "flat" (Report A's, after flattening).
    `downsample` is "pool" or "stride" (of the convolution).
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        kernel_size: int = 7,
        filters: int = 32,
        downsample: str = "pool",
        dense: str = "pixel",
        dropout: float = 0.0,
    ) -> None:
        check_one_of("downsample", downsample, ("pool", "stride"))
        check_one_of("dense", dense, ("pixel", "flat"))
        check_positive(filters=filters, kernel_size=kernel_size)
        stem: Layers = {
            "conv": nn.Conv2d(image_shape[0], filters, kernel_size, stride=2 if downsample == "stride" else 1),
            "relu": nn.ReLU(),
            "bn": BatchNorm(filters),
        }
        if downsample == "pool":
            stem["pool"] = nn.MaxPool2d(2)
        if dense == "pixel":
            stem |= {"dense": nn.Conv2d(filters, 1024, 1), "dense_relu": nn.ReLU()}
            stem |= {"dropout": Dropout(dropout), "flatten": Flatten()}
        else:
            stem["flatten"] = Flatten()
            (features,) = output_shape(nn.Sequential(OrderedDict(stem)), image_shape)
            stem |= {"dense": nn.Linear(features, 1024), "dense_relu": nn.ReLU()}
            stem["dropout"] = Dropout(dropout)
        super().__init__(image_shape, heads, stem)


class Deep(MultiHeadNet):
    """Report A's variations 4 and 5: three convolutions and a dense layer, four dropouts."""

    def __init__(
        self, image_shape: Shape, heads: Sequence[Head], dropout: Sequence[float] | float = (0.2, 0.25, 0.25, 0.25)
    ) -> None:
        rates = [dropout] * 4 if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != 4:
            raise ValueError(f"dropout={rates}: give one rate or four")
        stem: Layers = {
            "conv1": nn.Conv2d(image_shape[0], 32, 3),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),  # (B, 32, 13, 13) of 28 x 28
            "dropout1": Dropout(rates[0]),
            "conv2": nn.Conv2d(32, 64, 3, padding="same"),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),  # (B, 64, 6, 6)
            "dropout2": Dropout(rates[1]),
            "conv3": nn.Conv2d(64, 128, 3, padding="same"),
            "relu3": nn.ReLU(),
            "dropout3": Dropout(rates[2]),
            "bn": BatchNorm(128),
            "flatten": Flatten(),
        }
        (features,) = output_shape(nn.Sequential(OrderedDict(stem)), image_shape)
        stem |= {"dense": nn.Linear(features, 1024), "dense_relu": nn.ReLU()}
        stem["dropout4"] = Dropout(rates[3])
        super().__init__(image_shape, heads, stem)


class Shared(MultiHeadNet):
    """One feature extractor, and for each head only dense layers: Report A's v1 to v3, Report B's Figure 5.

    `convs` lists the convolutions: `filters`, `kernel_size`, `padding` ("same" or "valid") and, where max-pooling by 2
    follows, `pool_stride`. `hidden` is {head: widths of its dense layers}, by default one of 64. `batch_norm` puts
    BatchNorm between convolution and ReLU. `head_std` draws the heads' parameters from N(0, head_std²).
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        convs: Sequence[Mapping[str, Any]],
        hidden: Mapping[str, Sequence[int]],
        batch_norm: bool = False,
        dropout: float = 0.0,
        head_std: float | None = None,
    ) -> None:
        stem: Layers = {}
        channels = image_shape[0]
        for number, conv in enumerate(convs, start=1):
            filters, kernel, padding = conv["filters"], conv["kernel_size"], conv["padding"]
            check_one_of("padding", padding, ("same", "valid"))
            check_positive(filters=filters, kernel_size=kernel)
            stem[f"conv{number}"] = nn.Conv2d(channels, filters, kernel, padding=padding)
            if batch_norm:
                stem[f"bn{number}"] = BatchNorm(filters)
            stem[f"relu{number}"] = nn.ReLU()
            if "pool_stride" in conv:
                stem[f"pool{number}"] = nn.MaxPool2d(2, stride=conv["pool_stride"])
            channels = filters
        stem |= {"dropout": Dropout(dropout), "flatten": Flatten()}

        def branch(head: Head, shape: Shape) -> Layers:
            layers: Layers = {}
            (features,) = shape
            for number, units in enumerate(hidden.get(head.name, [64]), start=1):
                layers |= {f"dense{number}": nn.Linear(features, units), f"relu{number}": nn.ReLU()}
                features = units
            return layers

        super().__init__(image_shape, heads, stem, branch)
        if head_std is not None:
            for name in self.head_names:
                for parameter in self.get_submodule(name).parameters():
                    nn.init.normal_(parameter, std=head_std)


class Branched(MultiHeadNet):
    """Report B, section 7.1: a shared convolution, then convolutions for each head.

    A head of more than three classes gets two convolutions of twice the filters, as `angle` in the report.
    `color_heads` are the heads that need colours; all others then see brightness alone, and answer alike for a red and
    a green line. The report's poolings by 3 and 2 drop the last row of 28, and then three of 9; `overlapping_pool`
    keeps them (see `max_pool`). `relu_before_bn` is the report's order: convolution, ReLU, BatchNorm, pooling.
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        filters: int = 32,
        dropout: float = 0.25,
        color_heads: Sequence[str] = (),
        overlapping_pool: bool = False,
        relu_before_bn: bool = False,
    ) -> None:
        check_positive(filters=filters)
        for name in color_heads:
            check_one_of("color_heads", name, [head.name for head in heads])

        def convolution(channels: int, width: int, pool: nn.Module | None = None, suffix: str = "") -> Layers:
            layers: Layers = {f"conv{suffix}": nn.Conv2d(channels, width, 3, padding="same")}
            relu: Layers = {f"relu{suffix}": nn.ReLU()}
            bn: Layers = {f"bn{suffix}": BatchNorm(width)}
            layers |= relu | bn if relu_before_bn else bn | relu
            return layers if pool is None else layers | {"pool": pool}

        def stem(channels: int) -> Layers:
            pool = max_pool(3, image_shape, overlapping_pool)  # (B, filters, 9, 9) of 28 x 28
            return convolution(channels, filters, pool) | {"dropout": Dropout(dropout)}

        def branch(head: Head, shape: Shape) -> Layers:
            layers: Layers = {}
            if head.name in color_heads:
                layers["stem"] = nn.Sequential(OrderedDict(stem(image_shape[0])))
                shape = output_shape(layers["stem"], shape)
            pool = max_pool(2, shape, overlapping_pool)
            if len(head.classes) <= 3:
                layers |= convolution(filters, filters, pool)
            else:
                layers |= convolution(filters, 2 * filters, suffix="1")
                layers |= convolution(2 * filters, 2 * filters, pool, suffix="2")
            return layers | {"dropout": Dropout(dropout), "flatten": Flatten()}

        super().__init__(image_shape, heads, stem(1 if color_heads else image_shape[0]), branch, color_heads)


class Blocks(MultiHeadNet):
    """Blocks of two 3 x 3 convolutions with BatchNorm and ReLU, the second halved (after Simonyan and Zisserman 2015).

    `filters` are the widths of the blocks; `dropout` drops whole channels after a block; `downsample` is one of
    `layers.DOWNSAMPLE`. The heads see every place of the last block (`pooling` "flatten") or the mean over its places
    ("mean"), which are then not halved.
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        filters: Sequence[int] = (16, 64, 192),
        dropout: float = 0.1,
        downsample: str = "max",
        pooling: str = "flatten",
    ) -> None:
        check_one_of("pooling", pooling, ("flatten", "mean"))
        stem: Layers = {}
        channels = image_shape[0]
        for block, width in enumerate(filters, start=1):
            check_positive(filters=width)
            for layer in ("a", "b"):
                stem[f"conv{block}{layer}"] = nn.Conv2d(channels, width, 3, padding="same")
                stem[f"bn{block}{layer}"] = BatchNorm(width)
                stem[f"relu{block}{layer}"] = nn.ReLU()
                channels = width
            if pooling == "flatten" or block < len(filters):
                stem |= {f"{name}{block}": module for name, module in downsample_layers(downsample).items()}
            stem[f"dropout{block}"] = nn.Dropout2d(dropout)
        if pooling == "mean":
            stem["mean"] = nn.AdaptiveAvgPool2d(1)
        stem["flatten"] = Flatten()
        super().__init__(image_shape, heads, stem)


class ResNet(MultiHeadNet):
    """A small residual network (He et al. 2016, as theirs for CIFAR): a 3 x 3 convolution, then `blocks` residual
    blocks of each width in `filters`, the first of every further width halving the maps. The heads see every place of
    the last block; `dropout` drops values there."""

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        filters: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        check_positive(blocks=blocks, **{f"filters.{place}": width for place, width in enumerate(filters)})
        if not filters:
            raise ValueError("filters=[]: name at least one width")
        stem: Layers = {
            "conv": nn.Conv2d(image_shape[0], filters[0], 3, padding=1, bias=False),
            "bn": BatchNorm(filters[0]),
            "relu": nn.ReLU(),
        }
        channels = filters[0]
        for stage, width in enumerate(filters, start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                stem[f"block{stage}" + (f"_{block}" if blocks > 1 else "")] = Residual(channels, width, stride)
                channels = width
        stem |= {"dropout": Dropout(dropout), "flatten": Flatten()}
        super().__init__(image_shape, heads, stem)


class TorchvisionNet(MultiHeadNet):
    """A classification network of torchvision by `name`, with random weights; its last dense layer is replaced by one
    per head. Grey images are shown to it in three equal channels. Raises `ValueError` for an unknown name, or a network
    without dense layers."""

    def __init__(self, image_shape: Shape, heads: Sequence[Head], name: str) -> None:
        if name not in list_models(torchvision.models):
            close = get_close_matches(name, list_models(torchvision.models), n=3) or ["resnet18", "vgg11_bn"]
            raise ValueError(f"name={name} is no network of torchvision; there are {', '.join(close)} and others")
        quiet = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        body = get_model(name, weights=None, **quiet)
        last = [layer for layer, module in body.named_modules() if isinstance(module, nn.Linear)][-1:]
        if not last:
            raise ValueError(f"name={name} has no dense layer at its end")
        body.set_submodule(last[0], nn.Identity())
        state = copy.deepcopy(body.state_dict())
        super().__init__((3, *image_shape[1:]), heads, {"body": body})
        body.load_state_dict(state)  # torchvision's own initial values

    def forward(self, images: Tensor, heads: Sequence[str] | None = None) -> dict[str, Tensor]:
        return super().forward(images.expand(-1, 3, -1, -1), heads)
