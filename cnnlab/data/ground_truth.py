"""Line images with the exact right pixels for each question: a data set for checking explanations."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnnlab.data.datamodule import sample_indices
from cnnlab.data.lines import LineDataModule, LineDataset

PROTOCOL = "2"  # raised when images or right pixels change

Item = dict[str, Tensor | dict[str, Tensor]]


class LineTruths(Dataset[Item]):
    """`count` random test lines on a background of `data.backgrounds.BACKGROUNDS`, always the same ones. No network
    trained by cnnlab has seen them, whatever its seed.

    Item i is a dict: "image" float32 (3, 28, 28) in [0, 1]; "target" {head: int64 ()}; "line" bool (28, 28), the pixels
    of the line; "counterfactual" {head: bool (28, 28)}, the pixels that change with another answer to that head's
    question; "others" {head: float32 (K, 3, 28, 28)}, the drawings with other answers. All items at once are in the
    attributes `images`, `targets`, `lines`, `counterfactuals` and `others` {head: (K, N, 3, 28, 28)}.
    """

    def __init__(self, count: int = 100, background: str = "plain") -> None:
        module = LineDataModule(background=background)
        module.setup("test")
        self.background, self.heads, split = background, module.heads, module.splits["test"]
        assert isinstance(split, LineDataset)
        self.indices = sample_indices(len(split), count)
        self.images, self.targets = split.inputs(self.indices), split.targets(self.indices)
        self.others = {head.name: split.counterfactuals(self.indices, head).float() / 255 for head in self.heads}
        truths = {head.name: split.truths(self.indices, head) for head in self.heads}
        self.lines = truths[self.heads[0].name]["line"]
        self.counterfactuals = {name: truth["counterfactual"] for name, truth in truths.items()}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        return {
            "image": self.images[index],
            "target": {name: values[index] for name, values in self.targets.items()},
            "line": self.lines[index],
            "counterfactual": {name: masks[index] for name, masks in self.counterfactuals.items()},
            "others": {name: images[:, index] for name, images in self.others.items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        """The protocol's version and a hash of all images, targets and right pixels."""
        state = hashlib.blake2b(digest_size=8)
        masks = [self.lines, *self.counterfactuals.values()]
        for part in [(self.images * 255).round().to(torch.uint8), *self.targets.values(), *masks]:
            state.update(part.numpy().tobytes())
        return f"{PROTOCOL}-{state.hexdigest()}"
