"""The weighted loss, the metrics and a confusion matrix against numbers worked out by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cnnlab.classifier import Classifier, Tally, class_metrics
from cnnlab.heads import Head
from cnnlab.nets import Net
from cnnlab.report import results
from cnnlab.schedules import constant
from cnnlab.weighting import Fixed

SIDE, SHADE = Head("side", ("left", "right")), Head("shade", ("dark", "grey", "light"))


class _Given(Net):
    """A network that answers what the test says."""

    def __init__(self, answers: dict[str, Tensor]) -> None:
        super().__init__((SIDE, SHADE), {}, lambda head: {"out": nn.Linear(2, head.units)})
        self.answers = answers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.answers


ANSWERS = {
    "side": torch.tensor([[0.0], [math.log(3)]]),  # P(right) = 1/2 (says left), 3/4
    "shade": torch.tensor([[math.log(2), 0.0, 0.0], [math.log(2), 0.0, 0.0]]),  # 1/2, 1/4, 1/4
}
BATCH = (torch.zeros(2, 1, 28, 28), {"side": torch.tensor([0, 1]), "shade": torch.tensor([0, 2])})
SIDE_LOSS = (math.log(2) + math.log(4 / 3)) / 2
SHADE_LOSS = (math.log(2) + math.log(4)) / 2


def make(weights: dict[str, float] | None = None, l2: float = 0.0) -> Classifier:
    heads = (SIDE, SHADE)
    weighting = Fixed(heads, weights or {})
    return Classifier(_Given(ANSWERS), heads, partial(torch.optim.SGD, lr=0.1), constant, weighting, l2=l2)


def test_the_loss_is_the_weighted_sum_and_the_tally_keeps_the_parts() -> None:
    classifier = make({"shade": 3.0})
    loss, _ = classifier.step(BATCH, "train")
    assert loss.item() == pytest.approx(SIDE_LOSS + 3 * SHADE_LOSS)
    means = classifier.tally("train").compute()
    assert means == pytest.approx(
        {
            "loss": SIDE_LOSS + 3 * SHADE_LOSS,
            "joint_accuracy": 0.5,  # the second image has its side right and its shade wrong
            "side_loss": SIDE_LOSS,
            "shade_loss": SHADE_LOSS,
            "side_accuracy": 1.0,
            "shade_accuracy": 0.5,
        }
    )


def test_l2_on_the_last_kernels() -> None:
    classifier = make(l2=0.01)
    squares = 0.0
    for name in ("side", "shade"):
        weight = classifier.net.get_submodule(f"{name}.out").get_parameter("weight")
        nn.init.constant_(weight, 2.0)
        squares += 4.0 * weight.numel()
    assert squares == 4 * (2 * 1 + 2 * 3)
    assert classifier.step(BATCH, "train")[0].item() == pytest.approx(SIDE_LOSS + SHADE_LOSS + 0.01 * squares)


def test_a_tally_weighs_batches_by_their_images() -> None:
    tally = Tally(["a", "b"])
    tally.update(torch.tensor([3.0, 0.0]), 3)
    tally.update(torch.tensor([5.0, 1.0]), 1)
    assert tally.compute() == {"a": 2.0, "b": 0.25}


def test_confusion_and_macro_averages() -> None:
    metrics = class_metrics(3)
    metrics.update(torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 2, 2]))
    values = metrics.compute()
    assert values["confusion"].tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert values["class_precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert values["class_recall"].tolist() == pytest.approx([2 / 3, 1, 1 / 2])
    assert values["f1"].item() == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)
    assert values["recall"].item() == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_the_test_step_names_the_worst_class_and_the_truths_probability() -> None:
    classifier = make()
    classifier.test_step(BATCH, 0)
    summary = results(classifier)
    assert summary["joint_accuracy"] == 0.5
    assert summary["heads"]["shade"]["accuracy"] == 0.5
    assert summary["heads"]["side"]["accuracy"] == 1.0
    (answers,) = classifier.answers
    assert answers.predicted["shade"].tolist() == [0, 0]
    assert answers.truth.tolist() == pytest.approx([0.5 * 0.5, 0.75 * 0.25])
    assert summary["by_class"] == {
        "side": {
            "left": {"joint_accuracy": 1.0, "side": 1.0, "shade": 1.0},
            "right": {"joint_accuracy": 0.0, "side": 1.0, "shade": 0.0},
        },
        "shade": {  # no image is grey
            "dark": {"joint_accuracy": 1.0, "side": 1.0, "shade": 1.0},
            "light": {"joint_accuracy": 0.0, "side": 1.0, "shade": 0.0},
        },
    }
