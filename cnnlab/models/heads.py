"""A head: one question that a network answers about an image, and its classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Words that stand beside a head's name in networks, logs and tables.
RESERVED = (
    *("stem", "heads", "head_names", "color_heads", "head_weights"),
    *("joint", "joint_accuracy", "image", "notes", "ood", "loss", "acc", "lr", "seconds"),
)
NAME = r"[^\W\d_][^./\\\"'\n]*"


@dataclass(frozen=True)
class Head:
    """A name and its class names.

    Two classes share one output unit (a sigmoid; its logit is the evidence for the second class), more classes have one
    unit each (a softmax), as in both reports. A head may be the product of other heads, its `parts`: class i is then
    the i-th combination in row-major order, as in `Head("class", ..., parts=(length, width, angle, colour))`.

    Raises:
        ValueError: For fewer than two classes, or a name that a network or a table cannot hold.
    """

    name: str
    classes: tuple[str, ...]
    parts: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"head '{self.name}' has one class only; a network needs at least two")
        taken = self.name in RESERVED or hasattr(nn.Module(), str(self.name))
        if taken or not isinstance(self.name, str) or not re.fullmatch(NAME, self.name):
            raise ValueError(
                f"a head cannot be called '{self.name}': a name begins with a letter, has no dot, slash or quote, "
                f"and is none of {', '.join(RESERVED)}, and no attribute of torch.nn.Module"
            )

    @property
    def units(self) -> int:
        """Return the number of output units: 1 for two classes, else one per class."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def number(self, name: str) -> int | None:
        """Return the number of the class `name`, or None. The degree sign may be left out, as Hydra's command line
        cannot read it."""
        names = [*self.classes, *(known.rstrip("°") for known in self.classes)]
        return names.index(name) % len(self.classes) if name in names else None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, a scalar, of `logits` float (B, units) and `targets` int64 (B,)."""
        logits = logits.float()
        if self.units == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
        return F.cross_entropy(logits, targets)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the most probable class, int64 (B,), of `logits` (B, units)."""
        return (logits[:, 0] > 0).long() if self.units == 1 else logits.argmax(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities float32 (B, classes) of `logits` (B, units). Rows sum to 1."""
        logits = logits.float()
        if self.units == 1:
            return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
        return logits.softmax(dim=1)


def heads_to_json(heads: Iterable[Head]) -> dict[str, Any]:
    """Return heads as JSON: {name: {"classes": [...], "parts": {...}}}."""
    return {head.name: {"classes": head.classes, "parts": heads_to_json(head.parts)} for head in heads}


def heads_from_json(content: Mapping[str, Any]) -> tuple[Head, ...]:
    """Return the heads of `heads_to_json`; `ValueError`, `KeyError` or `TypeError` for anything else."""
    heads = []
    for name, head in content.items():
        if not isinstance(head["classes"], list) or not all(isinstance(word, str) for word in head["classes"]):
            raise ValueError(f"head '{name}' names no classes")
        heads.append(Head(name, tuple(head["classes"]), heads_from_json(head["parts"])))
    return tuple(heads)
