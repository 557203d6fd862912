"""Lines: the codec, and the renderer against geometry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

from cnnlab.data.rendering import (
    NUM_CLASSES,
    STYLES,
    Lines,
    attributes_of,
    centre_bounds,
    class_id_of,
    coverage,
    render,
)

EVERY = torch.arange(NUM_CLASSES)
LINES = Lines.from_class_ids(EVERY)
LENGTH, WIDTH = torch.tensor([7.0, 15.0]), torch.tensor([1.0, 3.0])


def test_there_are_144_kinds_and_the_codec_goes_both_ways() -> None:
    assert NUM_CLASSES == 144  # 96 of them red or blue
    assert torch.equal(class_id_of(attributes_of(EVERY)), EVERY)
    assert len({tuple(int(v[i]) for v in attributes_of(EVERY).values()) for i in range(144)}) == 144


def test_an_upright_line_is_exact_to_the_pixel() -> None:
    short_thin_0_red = LINES[torch.tensor([0])]
    grey = coverage(short_thin_0_red, torch.tensor([[10.5, 8.5]]))[0]
    expected = torch.zeros(28, 28)
    expected[8, 7:14] = 1  # 7 pixels from x = 7 to 14 in row 8
    torch.testing.assert_close(grey, expected)
    shifted = coverage(short_thin_0_red, torch.tensor([[10.75, 8.5]]))[0]
    assert shifted[8, 7].item() == pytest.approx(0.75)
    assert shifted[8, 14].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("style", "tolerance"), [("antialiased", 1e-3), ("supersampled", 1e-2), ("hard", 1e-2)])
def test_pixel_sums_are_length_times_width(style: str, tolerance: float) -> None:
    at = attributes_of(EVERY)
    area = LENGTH[at["length"]] * WIDTH[at["width"]]
    # Where the centre is in its pixel changes the sum of a slanted line; the mean over a pixel is the area.
    step = (torch.arange(32) + 0.5) / 32
    centres = 14 + torch.cartesian_prod(step, step)  # (1024, 2)
    sums = torch.stack([coverage(LINES, centre.expand(NUM_CLASSES, 2), style).sum(dim=(1, 2)) for centre in centres])
    assert ((sums.mean(dim=0) - area).abs() / area).max() < tolerance
    upright = (at["angle"] == 0) | (at["angle"] == 6)
    torch.testing.assert_close(sums[:, upright], area[upright].expand(1024, -1), atol=1e-3, rtol=0)


def test_orientation_by_image_moments() -> None:
    centres = torch.full((NUM_CLASSES, 2), 14.0)
    grey = coverage(LINES, centres).double()
    pixels = torch.arange(28).double() + 0.5
    x, y = pixels.view(1, 1, -1) - 14, 14 - pixels.view(1, -1, 1)  # y up
    xx, yy, xy = ((grey * m).sum(dim=(1, 2)) for m in (x * x, y * y, x * y))
    angle = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2) % 180
    wanted = attributes_of(EVERY)["angle"] * 15.0
    difference = (angle - wanted + 90) % 180 - 90
    assert difference.abs().max() < 1.5


def test_colour_lights_one_channel() -> None:
    images = render(EVERY, torch.full((NUM_CLASSES, 2), 14.0))
    assert images.dtype == torch.uint8
    lit = images.flatten(2).amax(dim=2) > 0
    channel = torch.tensor([0, 2, 1])[attributes_of(EVERY)["colour"]]  # red, blue, green
    assert torch.equal(lit, torch.eye(3, dtype=torch.bool)[channel])
    assert images.amax() == 255


def test_the_whole_line_is_inside() -> None:
    low, high = centre_bounds(LINES)
    at = attributes_of(EVERY)
    half_length, half_width = LENGTH[at["length"]] / 2, WIDTH[at["width"]] / 2
    angle = at["angle"] * math.pi / 12
    for along in (-1, 1):
        for across in (-1, 1):
            x = along * half_length * angle.cos() - across * half_width * angle.sin()
            y = along * half_length * angle.sin() + across * half_width * angle.cos()
            assert (low[:, 0] + x).min() > -1e-4
            assert (high[:, 0] + x).max() < 28 + 1e-4
            assert (low[:, 1] + y).min() > -1e-4
            assert (high[:, 1] + y).max() < 28 + 1e-4
    assert low[0].tolist() == [3.5, 0.5]  # 7 x 1, upright


@pytest.mark.parametrize("angle", [0, 3, 6, 9])  # 0°, 45°, 90°, 135°, where every program draws the same pixels
def test_literal_lines_are_those_of_a_program_that_takes_whole_numbers(angle: int) -> None:
    at = attributes_of(EVERY)
    thin = EVERY[(at["angle"] == angle) & (at["width"] == 0) & (at["colour"] == 0)]
    for kind in thin:
        reach = LENGTH[at["length"][kind]].item() / 2
        for x, y in ((14.2, 13.9), (11.5, 15.5), (13.75, 12.1)):
            way = math.cos(math.radians(angle * 15)) * reach, -math.sin(math.radians(angle * 15)) * reach
            picture = Image.new("L", (28, 28))
            ends = [math.floor(x - way[0]), math.floor(y - way[1]), math.floor(x + way[0]), math.floor(y + way[1])]
            if angle in (3, 9) and abs(ends[2] - ends[0]) != abs(ends[3] - ends[1]):
                continue  # not quite a diagonal: programs differ in where they step aside
            ImageDraw.Draw(picture).line(ends, fill=255)
            drawn = coverage(LINES[kind[None]], torch.tensor([[x, y]]), "literal")[0]
            assert torch.equal(drawn * 255, torch.tensor(list(picture.tobytes())).view(28, 28).float())


def test_a_literal_line_has_both_its_end_points() -> None:
    drawn = coverage(LINES[torch.tensor([0])], torch.tensor([[10.5, 8.5]]), "literal")[0]
    expected = torch.zeros(28, 28)
    expected[8, 7:15] = 1  # from the pixel of x = 7.0 to that of 14.0: 8 pixels
    assert torch.equal(drawn, expected)


def test_shapes_of_the_lines_own_length_have_their_area() -> None:
    at = attributes_of(EVERY)
    length, width = LENGTH[at["length"]], WIDTH[at["width"]]
    step = (torch.arange(16) + 0.5) / 16
    centres = 14 + torch.cartesian_prod(step, step)
    areas = {
        "capped_fitted": length * width - (1 - math.pi / 4) * width**2,
        "pointed": length * width - width**2 / 2,  # four triangles with legs of half the width are missing
    }
    for style, area in areas.items():
        sums = torch.stack(
            [coverage(LINES, centre.expand(NUM_CLASSES, 2), style).sum(dim=(1, 2)) for centre in centres]
        )
        assert ((sums.mean(dim=0) - area).abs() / area).max() < 0.05
        low, high = centre_bounds(LINES, style)
        for corner in (low, high):  # nothing is cut off there
            whole = coverage(LINES, corner - corner.round() + 14, style).sum(dim=(1, 2))
            torch.testing.assert_close(coverage(LINES, corner, style).sum(dim=(1, 2)), whole, atol=0.2, rtol=0.02)


# As wide as jitter may make a line, and as short and as long. A pixel is lit by how far its middle is inside.
@pytest.mark.parametrize("width", [1.0, 3.0, 5.1])
@pytest.mark.parametrize("longer", [1 / 1.4, 1.0, 1.4])
def test_pointed_ends_cover_of_each_pixel_what_finer_pixels_say(width: float, longer: float) -> None:
    class_ids = torch.arange(0, NUM_CLASSES, 3)  # all but the colours
    lines = LINES[class_ids]
    lines = replace(lines, length=lines.length * longer, width=torch.full((len(class_ids),), width))
    centres = 14 + torch.rand(len(class_ids), 2, generator=torch.Generator().manual_seed(0))
    fine = (torch.arange(28 * 16) + 0.5) / 16
    x, y = (fine - centre[:, None] for centre in centres.T)
    cos, sin = lines.cos[:, None, None], lines.sin[:, None, None]
    along = (x[:, None] * cos - y[:, :, None] * sin).abs()
    across = (x[:, None] * sin + y[:, :, None] * cos).abs()
    inside = (across <= width / 2) & (along + across <= lines.length[:, None, None] / 2)
    exact = inside.float().view(-1, 28, 16, 28, 16).mean(dim=(2, 4))
    apart = (coverage(lines, centres, "pointed") - exact).abs().sum(dim=(1, 2)) / exact.sum(dim=(1, 2))
    assert apart.max() < 0.2
    boxes = (coverage(lines, centres, "antialiased") - exact).abs().sum(dim=(1, 2)) / exact.sum(dim=(1, 2))
    assert apart.mean() < 0.9 * boxes.mean()  # the tips show


def test_a_soft_edge_falls_over_three_pixels() -> None:
    at = {"length": [1, 1], "width": [0, 1], "angle": [0, 0], "colour": [0, 0]}
    thin_and_thick = class_id_of({name: torch.tensor(values) for name, values in at.items()})
    drawn = coverage(LINES[thin_and_thick], torch.tensor([[14.0, 14.5]]).expand(2, 2), "soft")
    # From the row of the axis, 14, down. The thick one is what three hard rows are after a box blur over three rows.
    torch.testing.assert_close(drawn[0, 14:18, 14], torch.tensor([2 / 3, 1 / 3, 0, 0]))
    torch.testing.assert_close(drawn[1, 14:18, 14], torch.tensor([1, 2 / 3, 1 / 3, 0]))
    assert torch.equal(drawn, drawn.flip(2))
    assert drawn[1, 14, 21].item() == pytest.approx(0.5)  # its end, 7.5 pixels from the middle


def test_caps_are_half_discs_and_lie_inside() -> None:
    at = attributes_of(EVERY)
    length, width = LENGTH[at["length"]], WIDTH[at["width"]]
    step = (torch.arange(16) + 0.5) / 16
    centres = 14 + torch.cartesian_prod(step, step)
    sums = torch.stack([coverage(LINES, centre.expand(NUM_CLASSES, 2), "capped").sum(dim=(1, 2)) for centre in centres])
    area = length * width + math.pi * (width / 2) ** 2
    thick = at["width"] == 1  # the soft edge of a cap is not quite its area where it is as wide as the cap
    assert ((sums.mean(dim=0) - area).abs() / area)[thick].max() < 0.01
    assert ((sums.mean(dim=0) - area).abs() / area).max() < 0.04
    low, high = centre_bounds(LINES, "capped")
    for corner in (low, high):  # nothing is cut off there
        whole = coverage(LINES, corner - corner.round() + 14, "capped").sum(dim=(1, 2))
        torch.testing.assert_close(coverage(LINES, corner, "capped").sum(dim=(1, 2)), whole, atol=0.2, rtol=0.02)


def test_a_style_for_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = centre_bounds(LINES)
    centres = low + torch.rand(NUM_CLASSES, 2, generator=generator) * (high - low)
    styles = torch.randint(len(STYLES), (NUM_CLASSES,), generator=generator)
    together = coverage(LINES, centres, styles)
    for number, name in enumerate(STYLES):
        rows = styles == number
        assert torch.equal(together[rows], coverage(LINES[rows], centres[rows], name))


@pytest.mark.parametrize(("style", "first", "last"), [("brush", 6, 15), ("brush_fitted", 7, 13)])
def test_a_brush_draws_a_disc_at_every_place_between_two_pixels(style: str, first: int, last: int) -> None:
    short_thick_0 = LINES[torch.tensor([36])]
    drawn = coverage(short_thick_0, torch.tensor([[10.5, 8.5]]), style)[0]
    expected = torch.zeros(28, 28)
    # From pixel 7 to 14, fitted from 8 to 12, and a radius of 1.5 beyond: a corner pixel, (1, 1) away, is within it.
    expected[7:10, first : last + 1] = 1
    assert torch.equal(drawn, expected)


def test_a_line_may_differ_from_its_kind() -> None:
    jitter = torch.tensor([[2.0], [3.0], [math.pi / 2]])
    lines = Lines.from_class_ids(torch.tensor([0]), jitter)  # 7 x 1 at 0° becomes 14 x 3 at 90°
    drawn = coverage(lines, torch.tensor([[10.5, 14.0]]))[0]
    expected = torch.zeros(28, 28)
    expected[7:21, 9:12] = 1
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


def test_a_brush_whose_end_points_share_a_pixel_draws_a_dot() -> None:
    short = Lines(*(torch.tensor([value]) for value in (0.4, 3.0, 0.6, 0.8)))
    drawn = coverage(short, torch.tensor([[14.5, 14.5]]), "brush")[0]
    assert drawn.sum() == 9  # within 1.5 of the pixel's middle
