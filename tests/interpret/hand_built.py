"""A network with weights set by hand: its evidence is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.models.heads import Head
from cnnlab.models.layers import Flatten
from cnnlab.models.networks import MultiHeadNet


def left_half_net(head: Head, size: int = 28) -> MultiHeadNet:
    """A network that tells the two classes of `head`, red and blue, by the left half of an image (3, `size`, `size`)
    alone: the logit is its blue less its red there. The convolution hands red and blue on as they are."""
    stem = {"conv": nn.Conv2d(3, 2, 3, padding="same"), "flatten": Flatten()}
    net = MultiHeadNet((3, size, size), (head,), stem).eval()
    with torch.no_grad():
        kernels = net.get_submodule("stem.conv").get_parameter("weight").zero_()
        kernels[0, 0, 1, 1] = kernels[1, 2, 1, 1] = 1
        weights = torch.zeros(1, size, size, 2)
        weights[:, :, : size // 2] = torch.tensor([-1.0, 1.0])
        net.get_submodule(f"{head.name}.out").get_parameter("weight").copy_(weights.flatten(1))
    return net


def left_half_evidence(images: Tensor) -> Tensor:
    """The pixels, bool (N, H, W), on which the answer of `left_half_net` to images float32 (N, 3, H, W) depends: those
    of its half that are not equally red and blue. Each counts as much as they differ."""
    lit = images[:, 0] != images[:, 2]
    lit[:, :, images.shape[3] // 2 :] = False
    return lit
