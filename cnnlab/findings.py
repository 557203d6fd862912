"""What a page says first: what was found, in a few sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cnnlab.explain.heatmap_viewer import EDGES
from cnnlab.explain.inputs import Inputs
from cnnlab.explain.method_names import method_title
from cnnlab.html import join_words, pluralize
from cnnlab.log import percent
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
        counts = [f"{head.name} on {pluralize(_wrong(confusions[head.name]), 'image')}" for head in erring]
        found.append(f"Wrong: {join_words(counts)}" + (f"; {join_words(perfect)} on none." if perfect else "."))
    elif not wrong:
        found.append("There is no mistake among them.")
    found += [_most_often(head, confusions[head.name], len(heads) > 1) for head in erring[:4]]
    if data["test_in_train"]:
        of = f"{data['test_in_train']:,} of the {data['distinct_test']:,} distinct test images"
        found.append(f"It was trained on {of}: this says little of new ones.")
    elif data["overlap"]:
        known = pluralize(data["overlap"], "image stands", "images stand").capitalize()
        found.append(f"{known} in more than one split.")
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


def of_explanation(
    heads: Sequence[Head],
    probabilities: Mapping[str, Tensor],
    inputs: Inputs,
    ranks: Mapping[tuple[str, str, str], Tensor],
) -> list[str]:
    """What the images of an explanation show: which answers are right, and whether the heatmaps of the predicted
    classes lie on the true pixels better than an edge map does. `ranks` are those of `heatmap_viewer.ranks`."""
    found = []
    of = pluralize(len(inputs), "image")
    if inputs.truth is not None:
        wrong = {head.name: probabilities[head.name].argmax(dim=1) != inputs.truth[head.name] for head in heads}
        times = {name: int(misses.sum()) for name, misses in wrong.items()}
        erring = [f"{name} on {pluralize(number, 'image')}" for name, number in times.items() if number]
        found.append(f"Every answer to {of} is right." if not erring else f"Of {of} it errs in {join_words(erring)}.")
    shown = "predicted" if any(word == "predicted" for _, word, _ in ranks) else next((w for _, w, _ in ranks), "")
    means = {(method, head): own.nanmean().item() for (method, word, head), own in ranks.items() if word == shown}
    for method in dict.fromkeys(method for method, _ in means if method != EDGES):
        own = [head for name, head in means if name == method and means[name, head] == means[name, head]]  # not NaN
        if not own:
            continue
        better = [head for head in own if means[method, head] > means[EDGES, head]]
        said = f"On {'it' if len(inputs) == 1 else 'them'} {method_title(method)} lies on the pixels that decide"
        if better and len(better) < len(own):
            rest = [head for head in own if head not in better]
            found.append(
                f"{said} better than a mere edge map for {join_words(better)}, no better for {join_words(rest)}."
            )
        else:
            found.append(f"{said} {'better' if better else 'no better'} than a mere edge map for {join_words(own)}.")
    if not ranks:
        found.append("Which pixels decide is not known for these images: how right the heatmaps are, they do not say.")
    return found
