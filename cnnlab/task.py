"""What a network is asked, as a run folder keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cnnlab.data.datamodule import ImageDataModule
from cnnlab.data.outside import EXPECTS
from cnnlab.models.heads import Head

MOST_PIXELS = 10_000_000  # of the images of a data set


@dataclass(frozen=True)
class Task:
    """What a network is asked: its heads, about images of the shape (C, H, W); `expects` says how images from outside
    are treated (one of `data.outside.EXPECTS`)."""

    heads: tuple[Head, ...]
    image_shape: tuple[int, int, int]
    expects: str

    @classmethod
    def of(cls, data: ImageDataModule) -> Task:
        return cls(data.heads, data.image_shape, data.expects)

    def facts(self) -> dict[str, Any]:
        """What `summary.json` says of it."""
        return {"heads": _heads_facts(self.heads), "image_shape": self.image_shape, "expects": self.expects}

    @classmethod
    def from_facts(cls, facts: Any) -> Task:
        """The task of such `facts`; `ValueError`, `TypeError`, `AttributeError` or `KeyError` where they are none."""
        channels, height, width = facts["image_shape"]
        sizes = (channels, height, width)
        whole = all(type(size) is int and size > 0 for size in sizes) and channels * height * width <= MOST_PIXELS
        heads = _heads(facts["heads"])
        if not (whole and heads and facts["expects"] in EXPECTS):
            raise ValueError
        return cls(heads, sizes, str(facts["expects"]))


def _heads_facts(heads: tuple[Head, ...]) -> dict[str, Any]:
    return {head.name: {"classes": head.classes, "parts": _heads_facts(head.parts)} for head in heads}


def _heads(facts: Any) -> tuple[Head, ...]:
    heads = []
    for name, head in facts.items():
        classes = head["classes"]
        if not isinstance(classes, list) or not classes or not all(isinstance(word, str) for word in classes):
            raise ValueError
        heads.append(Head(name, tuple(classes), _heads(head["parts"])))
    return tuple(heads)
