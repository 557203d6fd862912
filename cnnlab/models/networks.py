"""The networks of the two reports, and two beside them. Each is a stem and one branch a head; layers have
the names users say.

Every network is built from (image_shape, heads) and maps images float32 (B, C, H, W) to
{head name: logits (B, head.units)}. Every activation is a module of its own, used once and not in
place, so that hooks see each layer's output as it was. Initialisation and BatchNorm follow Keras, as
the reports did; parameter totals are those of the reports to the unit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cnnlab.errors import UserError
from cnnlab.models.dense import Dense, PixelDense
from cnnlab.models.heads import Head
from cnnlab.models.layers import (
    HALVINGS,
    BatchNorm,
    Dropout,
    Flatten,
    Layers,
    Residual,
    check_one_of,
    check_positive,
    halving,
    keras_init,
    max_pool,
    output_shape,
)

Shape = Sequence[int]  # (C, H, W) of an image or of maps, (features,) after flattening


class MultiHeadNet(nn.Module):
    """A stem, and for each head a branch that is named as the head is and ends in a dense layer `out`.

    `branch` takes a head and the shape of its input and gives the layers before `out`. The `hue_heads`, where
    there are any, see the image itself: their branch begins with a stem of its own. The common stem then sees
    brightness alone, one channel, and so do all other heads.
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        stem: Layers,
        branch: Callable[[Head, Shape], Layers] = lambda _head, _shape: {},
        hue_heads: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.head_names, self.hue_heads = tuple(head.name for head in heads), tuple(hue_heads)
        self.stem = nn.Sequential(OrderedDict(stem))
        features = output_shape(self.stem, (1 if hue_heads else image_shape[0], *image_shape[1:]))
        for head in heads:
            seen = image_shape if head.name in hue_heads else features
            layers = nn.Sequential(OrderedDict(branch(head, seen)))
            layers.add_module("out", Dense(math.prod(output_shape(layers, seen)), head.units))
            self.add_module(head.name, layers)
        keras_init(self)

    def forward(self, images: Tensor, heads: Sequence[str] | None = None) -> dict[str, Tensor]:
        """{head: logits (B, units)} of all heads, or only of `heads`: then no other branch runs."""
        # The V of HSV: a red, a blue and a green line are the same to it.
        seen = images.amax(dim=1, keepdim=True) if self.hue_heads else images
        features = self.stem(seen)
        return {
            name: self.get_submodule(name)(images if name in self.hue_heads else features)
            for name in (self.head_names if heads is None else heads)
        }

    def head_weights(self) -> list[Tensor]:
        """The weights (units, inputs) of every head's last layer."""
        return [self.get_submodule(f"{name}.out").get_parameter("weight") for name in self.head_names]


class Classifier1(MultiHeadNet):
    """Report B, sections 3.2 and 6.1: one convolution, one dense layer of 1,024 units.

    `dense` is "pixel" (the report's, applied at every pixel, a 1 x 1 convolution) or "flat" (Report A's,
    after flattening); `downsample` is "pool" or "stride" (the convolution strides instead).
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
        check_one_of("net.downsample", downsample, ("pool", "stride"))
        check_one_of("net.dense", dense, ("pixel", "flat"))
        check_positive(filters=filters, kernel_size=kernel_size)
        stem: Layers = {
            "conv": nn.Conv2d(image_shape[0], filters, kernel_size, stride=2 if downsample == "stride" else 1),
            "relu": nn.ReLU(),
            "bn": BatchNorm(filters),
        }
        if downsample == "pool":
            stem["pool"] = nn.MaxPool2d(2)
        if dense == "pixel":
            stem |= {"dense": PixelDense(filters, 1024), "dense_relu": nn.ReLU()}
            stem |= {"dropout": Dropout(dropout), "flatten": Flatten()}
        else:
            stem["flatten"] = Flatten()
            (features,) = output_shape(nn.Sequential(OrderedDict(stem)), image_shape)
            stem |= {"dense": Dense(features, 1024), "dense_relu": nn.ReLU()}
            stem["dropout"] = Dropout(dropout)
        super().__init__(image_shape, heads, stem)


class Deep(MultiHeadNet):
    """Report A's variations 4 and 5: three convolutions and a dense layer, four dropouts."""

    def __init__(
        self, image_shape: Shape, heads: Sequence[Head], dropout: Sequence[float] | float = (0.2, 0.25, 0.25, 0.25)
    ) -> None:
        rates = [dropout] * 4 if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != 4:
            raise UserError(f"net.dropout={rates}: give one rate, or one for each of the four places")
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
        stem |= {"dense": Dense(features, 1024), "dense_relu": nn.ReLU()}
        stem["dropout4"] = Dropout(rates[3])
        super().__init__(image_shape, heads, stem)


class Shared(MultiHeadNet):
    """One feature extractor, and for each head only dense layers: Report A's v1 to v3, Report B's Figure 5.

    `convs` lists the convolutions, each a mapping with `filters`, `kernel_size`, `padding` ("same" or
    "valid") and, where a max-pooling of 2 follows, `pool_stride`. `hidden` names for each head the
    widths of its dense layers; a head that it does not name has one of 64. `batch_norm` puts BatchNorm
    between convolution and ReLU. `head_std` draws the heads' kernels and biases from N(0, head_std²) instead
    of Keras's default.
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
                layers |= {f"dense{number}": Dense(features, units), f"relu{number}": nn.ReLU()}
                features = units
            return layers

        super().__init__(image_shape, heads, stem, branch)
        if head_std is not None:
            for name in self.head_names:
                for parameter in self.get_submodule(name).parameters():
                    nn.init.normal_(parameter, std=head_std)


class Branched(MultiHeadNet):
    """Report B, section 7.1: a shared convolution, then convolutions of each head's own.

    A head of more than three classes gets two convolutions of twice the filters, as `angle` does there.
    `hue_heads` names the heads that need colours: all others then see brightness alone, and answer for a
    green line what they answer for a red one. Of 28 rows the report's poolings by 3 and 2 drop the last one, and then
    the last three: with `pool_to_the_edge` their windows overlap instead (see `max_pool`). In the report a convolution
    is followed by ReLU, BatchNorm and pooling; with `relu_last` by pooling, BatchNorm and ReLU, as in `Blocks`: the
    zeros with which the next convolution pads the maps then say "nothing here", where after BatchNorm they say "as much
    as usual"; and after a pooling the two have a tenth, or a fifth, of the work.
    """

    def __init__(
        self,
        image_shape: Shape,
        heads: Sequence[Head],
        filters: int = 32,
        dropout: float = 0.25,
        hue_heads: Sequence[str] = (),
        pool_to_the_edge: bool = False,
        relu_last: bool = False,
    ) -> None:
        check_positive(filters=filters)
        for name in hue_heads:
            check_one_of("net.hue_heads", name, [head.name for head in heads])

        def convolution(channels: int, width: int, pool: nn.Module | None = None, suffix: str = "") -> Layers:
            conv: Layers = {f"conv{suffix}": nn.Conv2d(channels, width, 3, padding="same")}
            relu: Layers = {f"relu{suffix}": nn.ReLU()}
            bn: Layers = {f"bn{suffix}": BatchNorm(width)}
            pooled: Layers = {} if pool is None else {"pool": pool}
            return conv | pooled | bn | relu if relu_last else conv | relu | bn | pooled

        def stem(channels: int) -> Layers:
            pool = max_pool(3, image_shape, pool_to_the_edge)  # (B, filters, 9, 9) of 28 x 28
            return convolution(channels, filters, pool) | {"dropout": Dropout(dropout)}

        def branch(head: Head, shape: Shape) -> Layers:
            layers: Layers = {}
            if head.name in hue_heads:
                layers["stem"] = nn.Sequential(OrderedDict(stem(image_shape[0])))
                shape = output_shape(layers["stem"], shape)
            pool = max_pool(2, shape, pool_to_the_edge)
            if len(head.classes) <= 3:
                layers |= convolution(filters, filters, pool)
            else:
                layers |= convolution(filters, 2 * filters, suffix="1")
                layers |= convolution(2 * filters, 2 * filters, pool, suffix="2")
            return layers | {"dropout": Dropout(dropout), "flatten": Flatten()}

        super().__init__(image_shape, heads, stem(1 if hue_heads else image_shape[0]), branch, hue_heads)


class Blocks(MultiHeadNet):
    """Our own: blocks of two 3 x 3 convolutions, each with BatchNorm and ReLU, the second halved by pooling (in the
    manner of Simonyan and Zisserman 2015).

    `filters` are those of each block; `dropout` drops whole channels after a block. `downsample` is how a block is
    halved: "max", "avg" or "blur" (see `halving`). `pooling` is what the heads are given: "flatten", every place of the
    last block, or "mean", the mean over all its places, which are then not halved: the same wherever something lies.
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
        check_one_of("net.downsample", downsample, HALVINGS)
        check_one_of("net.pooling", pooling, ("flatten", "mean"))
        stem: Layers = {}
        channels = image_shape[0]
        for block, width in enumerate(filters, start=1):
            check_positive(filters=width)
            for layer in ("a", "b"):
                stem[f"conv{block}{layer}"] = nn.Conv2d(channels, width, 3, padding="same")
                if layer == "b" and (pooling == "flatten" or block < len(filters)):
                    # before the others, which then have a quarter of the work
                    stem |= {f"{name}{block}": module for name, module in halving(downsample).items()}
                stem[f"bn{block}{layer}"] = BatchNorm(width)
                stem[f"relu{block}{layer}"] = nn.ReLU()
                channels = width
            stem[f"dropout{block}"] = nn.Dropout2d(dropout)
        if pooling == "mean":
            stem["mean"] = nn.AdaptiveAvgPool2d(1)
        stem["flatten"] = Flatten()
        super().__init__(image_shape, heads, stem)


class ResNet(MultiHeadNet):
    """A small residual network (He et al. 2016, as theirs for CIFAR): a 3 x 3 convolution, then `blocks` residual
    blocks of each of `filters`, the first of every further width halving the maps; the heads see every place of the
    last, `dropout` of them dropped."""

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
            raise UserError("net.filters=[]: name at least one width")
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
