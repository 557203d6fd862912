"""Losses, predictions and probabilities against numbers worked out by hand."""

import math

import pytest
import torch

from cnnlab.interpret.inputs import Inputs, target_classes
from cnnlab.models.heads import Head

TWO = Head("length", ("short", "long"))
THREE = Head("angle", ("0°", "60°", "120°"))


def test_two_classes_share_one_unit() -> None:
    assert TWO.units == 1
    assert THREE.units == 3


def test_binary_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[0.0], [math.log(3)]])  # P(long) = 1/2 and 3/4
    loss = TWO.loss(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_categorical_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]])  # P = 1/3 each; 1/2, 1/4, 1/4
    loss = THREE.loss(logits, torch.tensor([2, 1]))
    assert loss.item() == pytest.approx((math.log(3) + math.log(4)) / 2)


def test_predictions_and_probabilities() -> None:
    logits = torch.tensor([[-math.log(4)], [math.log(4)]])
    assert TWO.predict(logits).tolist() == [0, 1]
    torch.testing.assert_close(TWO.probabilities(logits), torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    assert THREE.predict(logits).tolist() == [0]
    torch.testing.assert_close(THREE.probabilities(logits), torch.tensor([[0.5, 0.25, 0.25]]))


def test_bfloat16_logits_are_read_in_float32() -> None:
    logits = torch.tensor([[0.5], [-0.5]], dtype=torch.bfloat16)
    assert TWO.loss(logits, torch.tensor([1, 0])).dtype == torch.float32
    assert TWO.probabilities(logits).dtype == torch.float32


@pytest.mark.parametrize("name", ["heads", "head_names", "color_heads", "head_weights", "stem", "forward"])
def test_a_name_that_a_network_uses_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a head cannot be called '{name}'"):
        Head(name, ("a", "b"))


def test_a_class_is_found_by_its_name_first() -> None:
    """The degree sign may be left out where no class has that name."""
    head = Head("angle", ("0°", "45°", "45", "90°"))
    assert [head.number(name) for name in ("45°", "45", "90", "90°", "9")] == [1, 2, 3, 3, None]


def test_a_class_called_true_is_a_target() -> None:
    heads = [Head("answer", ("false", "true")), Head("side", ("left", "right"))]
    inputs = Inputs(torch.zeros(2, 1, 4, 4), ["a", "b"], {head.name: torch.tensor([1, 0]) for head in heads})
    targets = [target_classes(head, "true", inputs) for head in heads]
    assert [None if target is None else target.tolist() for target in targets] == [[1, 1], [1, 0]]
