"""Data sets of lines: splits without leakage, batches, settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cnnlab.data.lines import LineDataModule, LineDataset
from cnnlab.data.rendering import STYLES, Lines, centre_bounds, class_id_of, counterfactual_ids, render
from cnnlab.data.sampling import LineSampler
from cnnlab.utils.errors import UserError
from tests.conftest import HEADS


def changed_pixels(head: str, class_ids: Tensor, centres: Tensor) -> Tensor:
    """The pixels bool (B, 28, 28) of lines that change with another value of a head."""
    others = [render(other, centres) for other in counterfactual_ids(head, class_ids)]
    return (torch.stack(others) != render(class_ids, centres)).any(dim=2).any(dim=0)


def test_centres_are_uniform_over_all_places() -> None:
    short_thin_0_red = torch.zeros(2000, dtype=torch.int64)
    centres = LineSampler(0, "test").centres(torch.arange(2000), short_thin_0_red)
    low, high = centre_bounds(Lines.from_class_ids(short_thin_0_red[:1]))
    unit = (centres - low) / (high - low)
    assert unit.min() >= 0
    assert unit.max() <= 1
    for axis in (0, 1):  # Kolmogorov-Smirnov, 1 % level: 1.63 / sqrt(n)
        steps = torch.linspace(0, 1, 2000)
        assert (unit[:, axis].sort().values - steps).abs().max() < 1.63 / math.sqrt(2000)


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    some, class_ids = torch.tensor([5000, 3, 777]), torch.arange(6000) % 144
    together = LineSampler(1, "train").centres(torch.arange(6000), class_ids)
    assert torch.equal(LineSampler(1, "train").centres(some, class_ids[some]), together[some])
    assert not torch.equal(LineSampler(2, "train").centres(some, class_ids[some]), together[some])
    assert not torch.equal(LineSampler(1, "test").centres(some, class_ids[some]), together[some])


@pytest.mark.parametrize(
    ("style", "fresh"),
    [
        ("antialiased", False),
        ("hard", False),
        ("hard", True),
        ("literal", False),
        ("capped", True),
        ("brush", False),
        ("mixed", True),
    ],
)
def test_no_image_stands_in_two_splits(style: str, fresh: bool) -> None:
    data = LineDataModule(
        train_per_class=100, val_per_class=20, test_per_class=50, style=style, resample_each_epoch=fresh
    )
    data.setup()
    counts = data.counts(epochs=3)
    assert counts["overlap"] == 0
    assert counts["train"] == 96 * 100 * (3 if fresh else 1)
    if style == "hard":  # so few images there are that uniform draws repeat them, but within a split only
        assert counts["distinct_train"] < counts["train"]


def test_counts_see_a_leak() -> None:
    data = LineDataModule(train_per_class=2, val_per_class=1, test_per_class=1)
    data.setup()
    data.splits["test"] = data.splits["train"]
    assert data.counts()["overlap"] == 192


def test_batches_are_whole_and_balanced() -> None:
    data = LineDataModule(train_per_class=4, val_per_class=0, test_per_class=1, batch_size=96)
    data.setup()
    assert data.val_dataloader() == []
    seen = []
    for images, targets in data.train_dataloader():
        assert images.shape == (96, 3, 28, 28)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        seen.append(class_id_of(targets))  # red is 0 and blue 1, as among all kinds
    counts = torch.cat(seen).bincount(minlength=144).view(-1, 3)
    assert torch.equal(counts, torch.tensor([4, 4, 0]).expand(48, 3))


def test_the_class_task_has_readable_names() -> None:
    data = LineDataModule(task="class", train_per_class=1, val_per_class=1, test_per_class=1)
    data.setup()
    (head,) = data.heads
    assert len(head.classes) == 96
    assert head.classes[((1 * 2 + 0) * 12 + 9) * 2 + 1] == "long thin 135° blue"
    assert data.splits["test"].targets(torch.tensor([7]))["class"].tolist() == [7]


def test_green_lines_are_a_third_class_of_colour() -> None:
    data = LineDataModule(
        colours=["red", "blue", "green"], train_per_class=2, val_per_class=1, test_per_class=1, style="hard"
    )
    data.setup()
    assert [len(head.classes) for head in data.heads] == [2, 2, 12, 3]
    assert data.counts() | {"overlap": 0, "train": 288, "val": 144, "test": 144} == data.counts()
    images, targets = data.splits["test"].batch(torch.arange(144))
    channel = torch.tensor([0, 2, 1])[targets["colour"]]  # red, blue, green
    assert torch.equal(images.flatten(2).amax(dim=2), torch.eye(3)[channel])
    lines = torch.stack([targets[name] for name in ("length", "width", "angle", "colour")], dim=1)
    assert len(lines.unique(dim=0)) == 144


def test_the_held_out_region_is_the_test_splits_alone() -> None:
    data = LineDataModule(train_per_class=20, val_per_class=5, test_per_class=10, holdout="region")
    data.setup()
    for name, split in data.splits.items():
        assert isinstance(split, LineDataset)
        x, y = split.centres_of(torch.arange(len(split))).unbind(dim=1)
        assert torch.equal((x > 14) & (y < 14), torch.full((len(split),), name == "test"))
    assert data.counts()["overlap"] == 0


def test_fresh_draws_new_centres_every_epoch_and_the_workers_do_not_matter() -> None:
    epochs = []
    for workers in (0, 2):
        data = LineDataModule(
            train_per_class=2, val_per_class=0, test_per_class=1, resample_each_epoch=True, num_workers=workers
        )
        data.setup()
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[attr-defined]
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
        ({"holdout": "regoin"}, "data.holdout=regoin: choose one of none, region"),
        ({"placement": "report_c"}, "data.placement=report_c: choose one of anywhere, report_a, report_b"),
        ({"placement": "report_a", "holdout": "region"}, "data.placement=report_a goes with neither data.holdout nor"),
        ({"jitter": {"length": 2.0}}, "data.jitter.length=2.0 is not one of length 0..0.5, width 0..1, angle 0..7.5"),
        ({"jitter": {"hue": 0.1}}, "data.jitter.hue=0.1 is not one of length 0..0.5"),
        ({"colours": ["red"]}, "name two or more of red, blue, green"),
        ({"colours": ["red", "pink"]}, "name two or more of red, blue, green"),
        ({"colours": ["red", "red"]}, "name two or more of red, blue, green"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LineDataModule(**settings)  # type: ignore[arg-type]


def test_mixed_lines_are_drawn_in_every_style_a_function_of_the_index() -> None:
    split, rows = LineDataset(LineSampler(1, "train", "mixed"), 50), torch.arange(4800)
    styles = split.sampler.styles(rows)
    assert isinstance(styles, torch.Tensor)
    assert (torch.bincount(styles, minlength=len(STYLES)) / 4800 - 1 / len(STYLES)).abs().max() < 0.02
    some = torch.tensor([4000, 3, 77])
    assert torch.equal(split.images(some), split.images(rows)[some])
    own = render(split.class_ids_of(some), split.centres_of(some), styles[some])
    assert torch.equal(split.images(some), own)
    assert not torch.equal(LineDataset(LineSampler(2, "train", "mixed"), 50).sampler.styles(rows), styles)
    assert not torch.equal(LineDataset(LineSampler(1, "test", "mixed"), 50).sampler.styles(rows), styles)
    for head in HEADS:  # the truths are those of the style
        line = split.truths(some, head)["line"]
        assert torch.equal(line, split.images(some).amax(dim=1) > 0)


def test_the_test_may_be_drawn_in_another_style() -> None:
    data = LineDataModule(train_per_class=2, val_per_class=1, test_per_class=1, style="mixed", test_style="antialiased")
    data.setup()
    assert [data.splits[name].sampler.style for name in data.names] == ["mixed", "mixed", "antialiased"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"data.style=blurred: choose one of antialiased, hard, .*, mixed"):
        LineDataModule(style="blurred")


def test_jitter_is_that_of_training_lines_alone_and_stays_within_its_limits() -> None:
    most = {"length": 0.3, "width": 0.7, "angle": 5.0}
    data = LineDataModule(train_per_class=20, val_per_class=2, test_per_class=2, jitter=most)
    data.setup()
    train = data.splits["train"]
    assert isinstance(train, LineDataset)
    jitter = train.sampler.jitters(torch.arange(len(train)))
    assert jitter is not None
    longer, wider, turn = jitter
    for values, highest in ((longer.log(), math.log(1.3)), (wider.log(), math.log(1.7)), (turn, math.radians(5))):
        assert 0.95 * highest < values.max() <= highest + 1e-6
        assert -highest - 1e-6 <= values.min() < -0.95 * highest
        assert abs(values.mean()) < 0.1 * highest
    for name in ("val", "test"):
        assert data.splits[name].sampler.jitters(torch.arange(5)) is None  # type: ignore[attr-defined]
    assert data.counts()["overlap"] == 0
    wide = train.images(torch.arange(len(train))).amax(dim=1).sum(dim=(1, 2)) / 255.0
    lines = Lines.from_class_ids(train.class_ids_of(torch.arange(len(train))), jitter)
    area = lines.length * lines.width
    assert ((wide - area).abs() / area).mean() < 0.1


@pytest.mark.parametrize(
    ("placement", "distinct", "known"),  # reference: 82.4 % of Report A's test images were known, B had 4,932 distinct
    [("report_a", (30_000, 40_000), (0.80, 0.88)), ("report_b", (4_900, 4_992), (0.999, 1.0))],
)
def test_the_reports_generators_leak_as_theirs_do(
    placement: str, distinct: tuple[int, int], known: tuple[float, float]
) -> None:
    data = LineDataModule(placement=placement, style="hard", val_per_class=0)
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    seen = {image.tobytes() for rows in torch.arange(72_000).split(4096) for image in train.images(rows).numpy()}
    tested = [image.tobytes() for rows in torch.arange(24_000).split(4096) for image in test.images(rows).numpy()]
    assert distinct[0] <= len(seen | set(tested)) <= distinct[1]
    assert known[0] <= sum(image in seen for image in tested) / len(tested) <= known[1]
    assert isinstance(train, LineDataset)
    x, y = train.centres_of(torch.arange(9_600)).unbind(dim=1)
    assert (x % 1 == 0.5).all()
    assert (y % 1 == 0.5).all()
    low, high = centre_bounds(Lines.from_class_ids(train.class_ids_of(torch.arange(9_600))))
    centres = torch.stack([x, y], dim=1)
    assert (centres >= low - 1e-3).all()
    assert (centres <= high + 1e-3).all()


def test_a_report_places_a_short_line_at_100_places_and_a_long_one_at_4() -> None:
    draws, indices = LineSampler(0, "train", "hard", placement="report_b"), torch.arange(4000)
    for kind, places in ((0, 100), (100, 4)):  # a short and a long line
        assert len(draws.centres(indices, torch.full((4000,), kind)).unique(dim=0)) == places


def test_an_index_gives_one_image_and_a_loader_whole_batches() -> None:
    data = LineDataModule(train_per_class=1, val_per_class=0, test_per_class=1)
    data.setup()
    split = data.splits["test"]
    image, targets = split[3]
    assert (image.shape, image.dtype, targets["angle"].shape) == ((3, 28, 28), torch.float32, ())
    images, every = split.batch([2, 3])
    assert torch.equal(images[1], image)
    assert every["angle"][1] == targets["angle"]
    assert torch.equal(split[-1][0], split[len(split) - 1][0])
    with pytest.raises(IndexError, match=r"index 96 is not in 0\.\.95"):
        split[96]
    (batch,) = torch.utils.data.DataLoader(split, batch_size=96)  # PyTorch's own collation
    assert torch.equal(batch[0], split.inputs(torch.arange(96)))
