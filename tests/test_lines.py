"""Lines: the codec, the renderer against geometry, and splits without leakage."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnlab import UserError
from cnnlab.data.lines import (
    CLASSES,
    HEADS,
    LineData,
    attributes_of,
    centre_bounds,
    class_of,
    coverage,
    draw_centres,
    file_name,
    parse_file_name,
    render,
)

EVERY = torch.arange(CLASSES)
LENGTH, WIDTH = torch.tensor([7.0, 15.0]), torch.tensor([1.0, 3.0])


def test_there_are_96_classes_and_the_codec_goes_both_ways() -> None:
    assert CLASSES == 96
    assert torch.equal(class_of(attributes_of(EVERY)), EVERY)
    assert len({tuple(int(v[i]) for v in attributes_of(EVERY).values()) for i in range(96)}) == 96


def test_file_name_of_the_problem_statement() -> None:
    number = int(
        class_of(
            {k: torch.tensor([v]) for k, v in {"length": 1, "width": 1, "angle": 9, "colour": 0}.items()}
        )
    )
    assert number == ((1 * 2 + 1) * 12 + 9) * 2 + 0
    assert file_name(number, 3) == "1_1_9_0_3"
    assert HEADS[2].classes[9] == "135°"


@given(st.integers(0, 95), st.integers(0, 10**6))
def test_file_names_round_trip(class_number: int, number: int) -> None:
    assert parse_file_name(file_name(class_number, number)) == (class_number, number)


@pytest.mark.parametrize("name", ["", "1_1_9_0", "1_1_12_0_3", "2_0_0_0_0", "1_1_9_0_x", "1_1_9_0_-3"])
def test_a_bad_file_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        parse_file_name(name)


def test_an_upright_line_is_exact_to_the_pixel() -> None:
    short_thin_0_red = torch.tensor([0])
    grey = coverage(short_thin_0_red, torch.tensor([[10.5, 8.5]]))[0]
    expected = torch.zeros(28, 28)
    expected[8, 7:14] = 1  # 7 pixels from x = 7 to 14 in row 8
    torch.testing.assert_close(grey, expected)
    shifted = coverage(short_thin_0_red, torch.tensor([[10.75, 8.5]]))[0]
    assert shifted[8, 7].item() == pytest.approx(0.75)
    assert shifted[8, 14].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("antialias", "tolerance"), [(True, 1e-3), (False, 1e-2)])
def test_pixel_sums_are_length_times_width(antialias: bool, tolerance: float) -> None:
    at = attributes_of(EVERY)
    area = LENGTH[at["length"]] * WIDTH[at["width"]]
    # Where the centre is in its pixel changes the sum of a slanted line; the mean over a pixel is the area.
    step = (torch.arange(32) + 0.5) / 32
    centres = 14 + torch.cartesian_prod(step, step)  # (1024, 2)
    sums = torch.stack(
        [coverage(EVERY, centre.expand(96, 2), antialias).sum(dim=(1, 2)) for centre in centres]
    )
    assert ((sums.mean(dim=0) - area).abs() / area).max() < tolerance
    upright = (at["angle"] == 0) | (at["angle"] == 6)
    torch.testing.assert_close(sums[:, upright], area[upright].expand(1024, -1), atol=1e-3, rtol=0)


def test_orientation_by_image_moments() -> None:
    centres = torch.full((CLASSES, 2), 14.0)
    grey = coverage(EVERY, centres).double()
    pixels = torch.arange(28).double() + 0.5
    x, y = pixels.view(1, 1, -1) - 14, 14 - pixels.view(1, -1, 1)  # y up
    xx, yy, xy = ((grey * m).sum(dim=(1, 2)) for m in (x * x, y * y, x * y))
    angle = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2) % 180
    wanted = attributes_of(EVERY)["angle"] * 15.0
    difference = (angle - wanted + 90) % 180 - 90
    assert difference.abs().max() < 1.5


def test_colour_lights_one_channel() -> None:
    images = render(EVERY, torch.full((CLASSES, 2), 14.0))
    assert images.dtype == torch.uint8
    lit = images.flatten(2).amax(dim=2) > 0
    red = attributes_of(EVERY)["colour"] == 0
    assert torch.equal(lit[red], torch.tensor([True, False, False]).expand(48, 3))
    assert torch.equal(lit[~red], torch.tensor([False, False, True]).expand(48, 3))
    assert images.amax() == 255


def test_the_whole_line_is_inside() -> None:
    low, high = centre_bounds(EVERY)
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


def test_centres_are_uniform_over_all_places() -> None:
    indices = torch.arange(2000) * CLASSES  # short, thin, 0°, red
    centres = draw_centres(0, "test", indices)
    low, high = centre_bounds(torch.tensor([0]))
    unit = (centres - low) / (high - low)
    assert unit.min() >= 0
    assert unit.max() <= 1
    for axis in (0, 1):  # Kolmogorov-Smirnov, 1 % level: 1.63 / sqrt(n)
        steps = torch.linspace(0, 1, 2000)
        assert (unit[:, axis].sort().values - steps).abs().max() < 1.63 / math.sqrt(2000)


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    some = torch.tensor([5000, 3, 777])
    together = draw_centres(1, "train", torch.arange(6000))
    assert torch.equal(draw_centres(1, "train", some), together[some])
    assert not torch.equal(draw_centres(2, "train", some), together[some])
    assert not torch.equal(draw_centres(1, "test", some), together[some])


@pytest.mark.parametrize(("antialias", "fresh"), [(True, False), (False, False), (False, True)])
def test_no_image_stands_in_two_splits(antialias: bool, fresh: bool) -> None:
    data = LineData(
        train_per_class=100, val_per_class=20, test_per_class=50, antialias=antialias, fresh=fresh
    )
    data.setup()
    counts = data.counts(epochs=3)
    assert counts["overlap"] == 0
    assert counts["train"] == 96 * 100 * (3 if fresh else 1)
    if not antialias:  # so few images there are that uniform draws repeat them, but within a split only
        assert counts["distinct_train"] < counts["train"]


def test_counts_see_a_leak() -> None:
    data = LineData(train_per_class=2, val_per_class=1, test_per_class=1)
    data.setup()
    data.splits["test"] = data.splits["train"]
    assert data.counts()["overlap"] == 192


def test_batches_are_whole_and_balanced() -> None:
    data = LineData(train_per_class=4, val_per_class=0, test_per_class=1, batch_size=96)
    data.setup()
    assert data.val_dataloader() == []
    seen = []
    for images, targets in data.train_dataloader():
        assert images.shape == (96, 3, 28, 28)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        seen.append(class_of(targets))
    assert torch.equal(torch.cat(seen).bincount(), torch.full((96,), 4))


def test_the_class_task_has_readable_names() -> None:
    data = LineData(task="class", train_per_class=1, val_per_class=1, test_per_class=1)
    data.setup()
    (head,) = data.heads
    assert (
        head.classes[
            int(
                class_of(
                    {
                        "length": torch.tensor(1),
                        "width": torch.tensor(0),
                        "angle": torch.tensor(9),
                        "colour": torch.tensor(1),
                    }
                )
            )
        ]
        == "long thin 135° blue"
    )
    assert data.splits["test"].targets(torch.tensor([7]))["class"].tolist() == [7]


def test_fresh_draws_new_centres_every_epoch_and_the_workers_do_not_matter() -> None:
    epochs = []
    for workers in (0, 2):
        data = LineData(train_per_class=2, val_per_class=0, test_per_class=1, fresh=True, num_workers=workers)
        data.setup()
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            epochs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    first, second = ({image.numpy().tobytes() for image in epoch} for epoch in epochs[:2])
    assert not first & second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "clas"}, "data.task=clas: choose one of attributes, class"),
        ({"train_per_class": 0}, "data.train_per_class=0"),
        ({"val_per_class": -1}, "data.val_per_class=-1"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LineData(**settings)  # type: ignore[arg-type]
