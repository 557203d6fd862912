"""Lines that others drew, and the reader by moments."""

from __future__ import annotations

import math

import pytest
import torch

from cnnlab.data.rendering import NUM_CLASSES, Lines, attributes_of, centre_bounds, coverage, render
from cnnlab.data.sampling import in_region
from research.renderers.external import RENDERERS, available, external_coverage
from research.renderers.line_bench import PLACES, LineBench, moments_baseline

EVERY = torch.arange(NUM_CLASSES)
UPRIGHT = Lines.from_class_ids(torch.tensor([0]))  # short, thin, 0°
AT = torch.tensor([[10.5, 8.5]])
TRUE_TO_SIZE = ("Pillow, supersampled", "matplotlib")


def test_all_programs_are_installed_here() -> None:
    assert available() == list(RENDERERS)


@pytest.mark.parametrize(
    ("name", "first", "last"),  # the lit columns of a line of 7 pixels from 7 to 14
    [("Pillow", 7, 13), ("Pillow, literal ends", 7, 14), ("OpenCV", 7, 13), ("Pillow, supersampled", 7, 13)],
)
def test_a_thin_upright_line_is_exact_to_the_pixel(name: str, first: int, last: int) -> None:
    expected = torch.zeros(28, 28)
    expected[8, first : last + 1] = 1
    torch.testing.assert_close(external_coverage(name, UPRIGHT, AT)[0], expected)


@pytest.mark.parametrize("name", TRUE_TO_SIZE)
def test_what_is_drawn_true_to_size_is_what_we_draw(name: str) -> None:
    lines = Lines.from_class_ids(EVERY)
    centres = 14 + torch.rand(NUM_CLASSES, 2, generator=torch.Generator().manual_seed(0))
    theirs, ours = external_coverage(name, lines, centres), coverage(lines, centres)
    area = lines.length * lines.width
    assert (theirs.sum(dim=(1, 2)) / area).mean().item() == pytest.approx(1, abs=0.06)  # Pillow rounds to an eighth
    assert ((theirs - ours).abs().sum(dim=(1, 2)) / area).mean() < 0.12


@pytest.mark.parametrize("name", RENDERERS)
def test_every_program_draws_lines_where_and_how_they_lie(name: str) -> None:
    lines = Lines.from_class_ids(EVERY)
    grey = external_coverage(name, lines, torch.full((NUM_CLASSES, 2), 14.0)).double()
    assert grey.min() >= 0
    assert grey.max() <= 1
    places = torch.arange(28.0).double() + 0.5
    mass = grey.sum(dim=(1, 2))
    for axis in (1, 2):  # within a pixel, to which some round
        centre = (grey.sum(dim=3 - axis) * places).sum(dim=1) / mass
        assert (centre - 14).abs().max() < 1
    angle = moments_baseline(grey.float()[:, None].repeat(1, 3, 1, 1))["angle"]
    assert (angle == attributes_of(EVERY)["angle"]).double().mean() > 0.85


def test_moments_read_a_box_worked_out_by_hand() -> None:
    images = torch.zeros(2, 3, 28, 28)
    images[0, 2, 10:13, 4:19] = 1  # 15 x 3, upright, blue
    images[1, 0, 5:12, 20] = 0.25  # 7 x 1, at 90°, red, dim
    read = moments_baseline(images)
    assert {name: values.tolist() for name, values in read.items()} == {
        "length": [1, 0],
        "width": [1, 0],
        "angle": [0, 6],
        "colour": [1, 0],
    }


def test_moments_read_every_line_that_we_draw() -> None:
    low, high = centre_bounds(Lines.from_class_ids(EVERY))
    centres = low + torch.rand(NUM_CLASSES, 2, generator=torch.Generator().manual_seed(1)) * (high - low)
    read, truth = moments_baseline(render(EVERY, centres) / 255), attributes_of(EVERY)
    assert all(torch.equal(read[name], truth[name]) for name in truth)


def test_the_bench_has_every_kind_in_every_variation() -> None:
    bench = LineBench.draw(2, ("blue", "green"))
    assert torch.equal(bench.class_ids.unique(), EVERY[EVERY % 3 > 0])  # all but the red ones
    found = list(bench.variations())
    assert len({variation.name for variation in found}) == len(found)
    for variation in found:
        assert variation.images.shape == (2 * 96, 3, 28, 28)
        assert 0 <= variation.images.min() <= variation.images.max() <= 1
    (corner,) = [variation for variation in found if variation.group == PLACES]
    grey = corner.images.amax(dim=1)
    places = torch.arange(28.0) + 0.5
    centres = torch.stack([(grey.sum(dim=1) * places).sum(dim=1), (grey.sum(dim=2) * places).sum(dim=1)], dim=1)
    assert in_region(centres / grey.sum(dim=(1, 2))[:, None]).all()


def test_the_bench_is_the_same_for_the_same_seed() -> None:
    one, same, other = (LineBench.draw(1, ("red", "blue"), seed) for seed in (0, 0, 1))
    for first, second in zip(one.variations(), same.variations(), strict=True):
        assert torch.equal(first.images, second.images)
    assert not torch.equal(one.centres, other.centres)


def test_a_little_off_is_nearest_to_its_class() -> None:
    bench = LineBench.draw(1, ("red", "blue"))
    at = {variation.name: variation.images for variation in bench.variations()}
    straight, turned = at["antialiased"].double().amax(dim=1), at["turned by 5°"].double().amax(dim=1)
    places = torch.arange(28.0).double() + 0.5

    def degrees(grey: torch.Tensor) -> torch.Tensor:
        mass = grey.sum(dim=(1, 2))
        x = places - ((grey.sum(dim=1) * places).sum(dim=1) / mass)[:, None]
        y = ((grey.sum(dim=2) * places).sum(dim=1) / mass)[:, None] - places
        xy = torch.einsum("bij,bi,bj->b", grey, y, x)
        difference = (grey.sum(dim=1) * x**2).sum(dim=1) - (grey.sum(dim=2) * y**2).sum(dim=1)
        return torch.rad2deg(torch.atan2(2 * xy, difference) / 2)

    turn = (degrees(turned) - degrees(straight) + 90) % 180 - 90  # counter-clockwise
    assert turn.mean().item() == pytest.approx(5, abs=0.2)
    longer, drawn = at["2 pixels longer"].sum(dim=(1, 2, 3)), at["antialiased"].sum(dim=(1, 2, 3))
    width = torch.tensor([1.0, 3.0])[bench.truth["width"]]
    assert ((longer - drawn) / width).mean().item() == pytest.approx(2, abs=0.1)
    assert not math.isnan(turn.sum().item())
