"""A line that a person moves is the line that the data set draws, where it is of a class."""

from __future__ import annotations

import math

import pytest
import torch

from cnnlab.data.line_scene import LineScene, draw
from cnnlab.data.rendering import (
    ANGLES,
    ATTRIBUTES,
    COLOURS,
    LENGTHS,
    NUM_CLASSES,
    STYLES,
    WIDTHS,
    attributes_of,
    render,
)
from tests.data.test_lines import changed_pixels

SHORT_RED = LineScene(7, 1, 45, (255, 0, 0), 14, 14)


def of_kind(kind: int, x: float, y: float) -> LineScene:
    at = {name: int(value) for name, value in attributes_of(torch.tensor([kind])).items()}
    values = [
        list(table.values())[at[name]] for name, table in zip(ATTRIBUTES, (LENGTHS, WIDTHS, ANGLES), strict=False)
    ]
    return LineScene(values[0], values[1], math.degrees(values[2]), list(COLOURS.values())[at["colour"]], x, y)


@pytest.mark.parametrize("style", STYLES)
def test_a_line_of_a_class_is_drawn_as_the_data_set_draws_it(style: str) -> None:
    class_ids = torch.arange(0, NUM_CLASSES, 5)
    centres = 10 + 8 * torch.rand(len(class_ids), 2, generator=torch.Generator().manual_seed(0))
    scenes = [of_kind(kind, *centre) for kind, centre in zip(class_ids.tolist(), centres.tolist(), strict=True)]
    apart = (draw(scenes, style).int() - render(class_ids, centres, style).int()).abs()
    assert (
        apart.max() <= 1
        if style in ("antialiased", "capped", "capped_fitted", "pointed", "soft")
        else (apart > 0).float().mean() < 1e-3
    )


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_its_truth_is_that_of_the_data_set(attribute: str) -> None:
    for kind in (0, 17, 70, 99, 140):
        expected = changed_pixels(attribute, torch.tensor([kind]), torch.tensor([[13.3, 14.8]]))[0]
        found = of_kind(kind, 13.3, 14.8).truth([attribute])
        assert (found != expected).sum() <= 1  # a grey level that lies between two steps


def test_a_line_of_each_class() -> None:
    short, long = SHORT_RED.of_each_class("length", ())
    assert (short, long.length) == (SHORT_RED, 15)
    assert [scene.length for scene in short.path_to(long, 5)] == [7, 9, 11, 13, 15]
    assert {scene.angle for scene in short.path_to(long, 5)} == {45}
    red, green = SHORT_RED.of_each_class("colour", ["red", "green"])
    assert [scene.colour for scene in red.path_to(green, 3)] == [(255, 0, 0), (128, 128, 0), (0, 255, 0)]
    turned = LineScene(7, 1, 170, (255, 0, 0), 14, 14).of_each_class("angle", ())
    assert sorted(scene.angle for scene in turned) == list(range(90, 270, 15))  # 180° is nearer than 0°


def test_a_line_that_would_leave_the_image_moves_as_far_as_it_must() -> None:
    line = LineScene(7, 1, 0, (255, 0, 0), 4, 14)
    way = line.path_to(line.of_each_class("length", ())[1], 3)
    assert [(scene.x, scene.y) for scene in way] == [(4, 14), (5.75, 14), (7.5, 14)]
