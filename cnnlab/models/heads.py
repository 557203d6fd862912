"""A head: one question that a network answers about an image, with the classes it may answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What stands beside a head's name in networks, logs and tables.
RESERVED = ("stem", "joint", "joint_accuracy", "image", "notes", "ood", "loss", "acc", "lr", "seconds")

NAME = r"[^\W\d_][^./\\\"'\n]*"


@dataclass(frozen=True)
class Head:
    """A name and its class names.

    Two classes share one unit (a sigmoid, its logit is the evidence for the second class);
    more have one unit each (a softmax). Both reports do so.

    `parts` are the heads whose product this head is: class number i is then the i-th combination
    in row-major order, as in `Head("class", ..., parts=(length, width, angle, colour))`.
    """

    name: str
    classes: tuple[str, ...]
    parts: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"head '{self.name}' has one class only; a network needs at least two to tell apart")
        taken = self.name in RESERVED or hasattr(nn.Module(), str(self.name))
        if taken or not isinstance(self.name, str) or not re.fullmatch(NAME, self.name):
            raise ValueError(
                f"a head cannot be called '{self.name}': a name begins with a letter, holds no dot, slash or quote, "
                f"and is none of {', '.join(RESERVED)}, and no attribute of torch.nn.Module"
            )

    @property
    def units(self) -> int:
        """Number of output units: 1 for two classes, else one a class."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def number(self, name: str) -> int | None:
        """The number of the class of that name, whose degree sign may be left out (Hydra's command line cannot read
        it); None where there is none."""
        names = [known.rstrip("°") for known in self.classes]
        return names.index(name.rstrip("°")) if name.rstrip("°") in names else None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar: binary for one unit, categorical for more.

        `logits` float (B, units), `targets` int64 (B,) in [0, classes).
        """
        logits = logits.float()
        if self.units == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
        return F.cross_entropy(logits, targets)

    def predict(self, logits: Tensor) -> Tensor:
        """The most probable class, int64 (B,), of `logits` (B, units)."""
        return (logits[:, 0] > 0).long() if self.units == 1 else logits.argmax(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities, float32 (B, classes), rows sum to 1, of `logits` (B, units)."""
        logits = logits.float()
        if self.units == 1:
            return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
        return logits.softmax(dim=1)
