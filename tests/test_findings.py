"""The sentences that a page begins with, from numbers worked out by hand."""

from __future__ import annotations

import torch

from cnnlab.findings import of_run
from cnnlab.models.heads import Head

ANGLE, WIDTH = Head("angle", ("0°", "15°", "30°")), Head("width", ("thin", "thick"))
SUMMARY = {"test": {"images": 30.0, "joint_accuracy": 26 / 30}, "data": {"overlap": 0}, "epochs": 3}
ANGLES = torch.tensor([[10, 0, 0], [3, 7, 0], [0, 1, 9]])
WIDTHS = torch.tensor([[15, 0], [0, 15]])


def test_a_run_with_mistakes_says_which_heads_err_and_how() -> None:
    assert of_run(SUMMARY, (ANGLE, WIDTH), {"angle": ANGLES, "width": WIDTHS}) == [
        "Every head is right on 86.66 % of 30 test images.",
        "Wrong: angle on four images; width on none.",
        "angle: most often 15° is taken for 0°, 3 of 10 images.",
        "None of them stands in the training or the validation set.",
    ]


def test_a_run_without_mistakes_and_one_with_one_head() -> None:
    perfect = {**SUMMARY, "test": {"images": 30.0, "joint_accuracy": 1.0}}
    assert of_run(perfect, (WIDTH,), {"width": WIDTHS})[:2] == [
        "The width is right on 100.00 % of 30 test images.",
        "There is no mistake among them.",
    ]
    assert of_run(SUMMARY, (ANGLE,), {"angle": ANGLES})[1] == "Most often 15° is taken for 0°, 3 of 10 images."


def test_images_that_were_trained_on_are_said_first_of_all() -> None:
    leaking = {**SUMMARY, "data": {"overlap": 14_638}}
    said = of_run(leaking, (ANGLE, WIDTH), {"angle": ANGLES, "width": WIDTHS})
    assert said[-1] == "14,638 images stand in more than one split: part of this is what it was trained on."
