"""Backgrounds: what they add, what they leave alone, and the right pixels on them."""

from __future__ import annotations

import pytest
import torch

from cnnlab.data.backgrounds import BACKGROUNDS, GREY, LINE_SHARE, MIN_CONTRAST, NOISE
from cnnlab.data.ground_truth import LineTruths
from cnnlab.data.lines import LineDataModule, LineDataset
from cnnlab.utils.errors import UserError
from tests.conftest import HEADS

ROWS = torch.arange(96) * 7


def split(background: str, seed: int = 0) -> LineDataset:
    module = LineDataModule(seed=seed, background=background, test_per_class=10)
    module.setup("test")
    found = module.splits["test"]
    assert isinstance(found, LineDataset)
    return found


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_image_is_a_function_of_its_index(background: str) -> None:
    lines = split(background)
    together = lines.images(ROWS)
    assert torch.equal(together[40:41], lines.images(ROWS[40:41]))
    assert torch.equal(lines.inputs(ROWS), together.float() / 255)
    if background != "plain":
        assert not torch.equal(together, split("plain").images(ROWS))


def test_a_distractor_lies_below_the_line_and_is_white() -> None:
    plain, background = split("plain").images(ROWS).int(), split("distractor").images(ROWS).int()
    added = background - plain
    assert (added >= 0).all()
    full = (plain.amax(dim=1) == 255)[:, None].expand_as(added)
    assert (added[full] == 0).all()  # where the line is whole nothing shines through
    assert torch.equal(added[:, 0], added[:, 1])
    assert torch.equal(added[:, 0], added[:, 2])
    assert (added.amax(dim=(1, 2, 3)) > 100).all()


@pytest.mark.parametrize("background", ["noise", "correlated"])
def test_noise_has_the_mean_and_the_strength_that_are_asked_for(background: str) -> None:
    lines = split(background)
    images = lines.images(torch.arange(960)).float()
    ground = ~lines.truths(torch.arange(960), HEADS[0])["line"][:, None].expand_as(images)
    values = images[ground]
    assert values.mean().item() == pytest.approx(GREY, abs=1.5)
    assert values.std().item() == pytest.approx(NOISE, abs=1.5)
    both = ground[:, 0, :, 1:] & ground[:, 0, :, :-1]
    likeness = ((images[:, 0, :, 1:] - GREY) * (images[:, 0, :, :-1] - GREY))[both].mean() / NOISE**2
    assert abs(likeness - (0.9 if background == "correlated" else 0)) < 0.1
    line = images.amax(dim=1)[lines.truths(torch.arange(960), HEADS[0])["line"]]
    assert line.max() <= 255
    assert line.mean() > GREY + LINE_SHARE * 100


def test_contrast_is_between_the_dimmest_and_full() -> None:
    rows = torch.arange(960)
    highest = split("contrast").images(rows).amax(dim=(1, 2, 3)) / split("plain").images(rows).amax(dim=(1, 2, 3))
    assert highest.min() >= MIN_CONTRAST - 0.01
    assert highest.max() > 0.97
    assert highest.std() > 0.2


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_true_pixels_are_those_that_another_answer_changes_on_the_same_background(background: str) -> None:
    lines, plain = split(background), split("plain")
    image = lines.images(ROWS)
    for head in HEADS:
        others = lines.counterfactuals(ROWS, head)
        assert others.shape == (2 if head.name == "angle" else 1, len(ROWS), 3, 28, 28)
        truth = lines.truths(ROWS, head)["counterfactual"]
        same = ~truth[None, :, None].expand_as(others)
        assert torch.equal(others[same], image.expand_as(others)[same])
        # The background hides a few faint pixels at most.
        known = plain.truths(ROWS, head)["counterfactual"]
        assert not (truth & ~known).any()
        assert truth.sum() > 0.9 * known.sum()


def test_no_background_brings_a_training_image_into_the_test() -> None:
    module = LineDataModule(background="correlated", train_per_class=20, val_per_class=5, test_per_class=20)
    module.setup()
    assert module.counts()["overlap"] == 0


def test_a_background_that_there_is_not_is_one_line() -> None:
    with pytest.raises(UserError, match=r"data\.background=fog: choose one of plain, distractor"):
        LineDataModule(background="fog")


def test_a_data_set_for_others() -> None:
    data = LineTruths(20)
    item = data[3]
    assert len(data) == 20
    assert isinstance(item["image"], torch.Tensor)
    assert item["image"].shape == (3, 28, 28)
    truths, others, targets = item["counterfactual"], item["others"], item["target"]
    assert isinstance(truths, dict)
    assert isinstance(others, dict)
    assert isinstance(targets, dict)
    for name in ("length", "width", "angle", "colour"):
        changed = (others[name] != item["image"]).any(dim=1).any(dim=0)
        assert torch.equal(changed, truths[name])
    assert torch.equal(truths["colour"], item["line"])
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
    assert batch["image"].shape == (5, 3, 28, 28)
    assert batch["others"]["angle"].shape == (5, 2, 3, 28, 28)


def test_the_protocol_knows_its_images() -> None:
    assert LineTruths(20).fingerprint == LineTruths(20).fingerprint
    assert len({LineTruths(20).fingerprint, LineTruths(21).fingerprint, LineTruths(20, "noise").fingerprint}) == 3
    assert LineTruths(32).fingerprint == "2-6adaf918e608ab5d"
