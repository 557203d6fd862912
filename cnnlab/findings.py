"""What a page says first: what was found, in a few sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cnnlab.html import counted, listed, percent
from cnnlab.models.heads import Head


def of_run(summary: Mapping[str, Any], heads: Sequence[Head], confusions: Mapping[str, Tensor]) -> list[str]:
    """What a test found: how many images are right, which heads err and how, and what the number is worth.
    `confusions` are int64 (K, K) by head, true classes by row."""
    test, data = summary["test"], summary["data"]
    images = int(test["images"])
    wrong = round((1 - test["joint_accuracy"]) * images)
    whole = "Every head is" if len(heads) > 1 else f"The {heads[0].name} is"
    found = [f"{whole} right on {percent(test['joint_accuracy'])} of {images:,} test images."]
    erring = [head for head in heads if _wrong(confusions[head.name])]
    perfect = [head.name for head in heads if head not in erring]
    if len(heads) > 1 and erring:
        counts = [f"{head.name} on {counted(_wrong(confusions[head.name]), 'image')}" for head in erring]
        found.append(f"Wrong: {listed(counts)}" + (f"; {listed(perfect)} on none." if perfect else "."))
    elif not wrong:
        found.append("There is no mistake among them.")
    found += [_most_often(head, confusions[head.name], len(heads) > 1) for head in erring[:4]]
    if data["overlap"]:
        known = counted(data["overlap"], "image stands", "images stand").capitalize()
        found.append(f"{known} in more than one split: part of this is what it was trained on.")
    elif summary["epochs"]:
        found.append("None of them stands in the training or the validation set.")
    return found


def _wrong(confusion: Tensor) -> int:
    return int(confusion.sum() - confusion.diagonal().sum())


def _most_often(head: Head, confusion: Tensor, named: bool) -> str:
    """Which class a head takes for which most often."""
    off = confusion.clone().fill_diagonal_(0)
    true, said = divmod(int(off.argmax()), len(head.classes))
    start = f"{head.name}: most" if named else "Most"
    of = f"{int(off[true, said]):,} of {int(confusion[true].sum()):,} images"
    return f"{start} often {head.classes[true]} is taken for {head.classes[said]}, {of}."
