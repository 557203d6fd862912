"""The sentences that a page begins with, from numbers worked out by hand."""

from __future__ import annotations

import torch

from cnnlab.explain.heatmap_viewer import EDGES
from cnnlab.explain.inputs import Inputs
from cnnlab.findings import of_explanation, of_run
from cnnlab.models.heads import Head

ANGLE, WIDTH = Head("angle", ("0°", "15°", "30°")), Head("width", ("thin", "thick"))
SUMMARY = {
    "test": {"images": 30.0, "joint_accuracy": 26 / 30},
    "data": {"overlap": 0, "test_in_train": 0, "distinct_test": 30},
    "epochs": 3,
}
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


def test_an_explanation_says_whether_maps_beat_an_edge_map_on_its_images() -> None:
    answers = {
        "angle": torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]]),
        "width": torch.tensor([[0.9, 0.1], [0.6, 0.4]]),
    }
    truth = {"angle": torch.tensor([0, 1]), "width": torch.tensor([0, 1])}
    inputs = Inputs(torch.zeros(2, 1, 4, 4), ["a", "b"], truth)
    both = torch.tensor([0.5, 0.7]), torch.tensor([0.2, 0.4])
    ranks = {("grad_cam", "true", "angle"): both[0], (EDGES, "true", "angle"): both[1]}
    ranks |= {("grad_cam", "true", "width"): torch.tensor([0.1, torch.nan]), (EDGES, "true", "width"): both[1]}
    assert of_explanation((ANGLE, WIDTH), answers, inputs, ranks) == [
        "Of two images it errs in width on one image.",
        "On them Grad-CAM lies on the pixels that decide better than a mere edge map for angle, no better for width.",
    ]
    assert of_explanation((ANGLE,), answers, inputs, {})[1].startswith("Which pixels decide is not known")


def test_images_that_were_trained_on_are_said_first_of_all() -> None:
    leaking = {**SUMMARY, "data": {"overlap": 4_991, "test_in_train": 4_604, "distinct_test": 4_605}}
    said = of_run(leaking, (ANGLE, WIDTH), {"angle": ANGLES, "width": WIDTHS})
    assert said[-1] == "It was trained on 4,604 of the 4,605 distinct test images: this says little of new ones."
    only_val = {**SUMMARY, "data": {"overlap": 1, "test_in_train": 0, "distinct_test": 30}}
    said = of_run(only_val, (ANGLE, WIDTH), {"angle": ANGLES, "width": WIDTHS})
    assert said[-1] == "One image stands in more than one split."
