"""The four metrics on 4 x 4 maps against numbers worked out by hand, the baselines and the truths."""

from __future__ import annotations

import math
from itertools import permutations, product
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnlab.data.lines import LineDataset, class_head
from cnnlab.data.rendering import NUM_CLASSES, attributes_of, class_id_of, render
from cnnlab.data.sampling import LineSampler
from cnnlab.interpret.metrics import METRICS, auc, mass_accuracy, pointing_game, rank_accuracy, sobel
from tests.conftest import HEADS
from tests.data.test_lines import changed_pixels

# True are the four pixels of the upper left corner.
MASK = torch.zeros(1, 4, 4, dtype=torch.bool)
MASK[0, :2, :2] = True


def _map(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 4, 4)


SOME = _map(5, 1, 0, 0, 3, 0, 0, 2, 0, 0, 4, 0, 0, 0, 0, -7)


def test_mass_is_the_share_of_positive_evidence() -> None:
    assert mass_accuracy(SOME, MASK).tolist() == [pytest.approx((5 + 1 + 3) / 15)]


def test_rank_counts_the_highest_k() -> None:
    # The four highest are 5, 4, 3, 2: of them 5 and 3 are true.
    assert rank_accuracy(SOME, MASK).tolist() == [0.5]


def test_rank_shares_ties_out() -> None:
    # 5 and 3 are true; the remaining two places are shared by four ones, of which one is true.
    tied = _map(5, 1, 1, 1, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0)
    assert rank_accuracy(tied, MASK).tolist() == [pytest.approx((2 + 2 * 1 / 4) / 4)]
    # Constant, not zero: all places are shared, chance.
    assert rank_accuracy(torch.ones(1, 4, 4), MASK).tolist() == [pytest.approx(4 / 16)]


def test_pointing_looks_at_the_highest_and_shares_ties() -> None:
    assert pointing_game(SOME, MASK).tolist() == [1.0]
    assert pointing_game(-SOME, MASK).tolist() == [0.0]
    tied = _map(5, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert pointing_game(tied, MASK).tolist() == [pytest.approx(1 / 3)]


def test_auc_counts_pairs() -> None:
    # True 5, 1, 3, 0 against nine 0, 2, 4, -7: 5 beats 12; 1 beats 10; 3 beats 11; 0 beats 1 and ties 9.
    assert auc(SOME, MASK).tolist() == [pytest.approx((12 + 10 + 11 + 1 + 9 / 2) / 48)]
    assert auc(MASK.float(), MASK).tolist() == [1.0]
    assert auc(-MASK.float(), MASK).tolist() == [0.0]


def test_a_zero_map_scores_nothing_and_an_empty_mask_is_no_question() -> None:
    zero = torch.zeros(1, 4, 4)
    assert {name: metric(zero, MASK).item() for name, metric in METRICS.items()} == {
        "mass": 0.0, "rank": 0.0, "pointing": 0.0, "auc": 0.5,
    }  # fmt: skip
    empty, full = torch.zeros_like(MASK), torch.ones_like(MASK)
    assert all(math.isnan(metric(SOME, empty).item()) for metric in METRICS.values())
    assert math.isnan(auc(SOME, full).item())
    assert rank_accuracy(SOME, full).tolist() == [1.0]


def test_a_map_with_a_nan_has_no_score() -> None:
    broken = torch.cat([SOME, SOME]).float()
    broken[0, 3, 3] = torch.nan
    for metric in METRICS.values():
        scores = metric(broken, MASK.expand(2, -1, -1))
        assert scores.isnan().tolist() == [True, False]
        assert torch.equal(scores[1:], metric(SOME, MASK))


def test_scores_have_the_precision_of_float64() -> None:
    # 1 of 3 highest is true; a float32 third is 1e-8 off.
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, :3] = True
    assert abs(rank_accuracy(_map(5, 0, 0, 4, 3, *[0.0] * 11), mask).item() - 1 / 3) < 1e-15


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=6))
def test_every_metric_is_the_mean_over_all_orders_of_equal_pixels(pixels: list[tuple[int, bool]]) -> None:
    values, truth = ([pixel[part] for pixel in pixels] for part in range(2))
    maps, masks = torch.tensor([[values]]).float(), torch.tensor([[truth]])
    places = range(len(pixels))
    orders = [order for order in permutations(places) if sorted(values, reverse=True) == [values[i] for i in order]]
    something, count = any(values), sum(truth)

    def pairs(among: list[int]) -> float:
        """The share of pairs of a true pixel and another in which the true one is the higher."""
        lit, dark = ([i for i in among if truth[i] == wanted] for wanted in (True, False))
        won = [(values[i] > values[j]) + (values[i] == values[j]) / 2 for i, j in product(lit, dark)]
        return mean(won) if won else math.nan

    positive = [max(value, 0) for value in values]
    expected = {
        "mass": sum(value for value, true in zip(positive, truth, strict=True) if true) / (sum(positive) or 1),
        "rank": something * mean(sum(truth[i] for i in order[:count]) / max(count, 1) for order in orders),
        "pointing": something * mean(truth[order[0]] for order in orders),
        "auc": pairs(list(places)),
    }
    for name, metric in METRICS.items():
        assert metric(maps, masks).item() == pytest.approx(expected[name] if count else math.nan, nan_ok=True), name


def test_images_are_scored_apart() -> None:
    maps, masks = torch.cat([SOME, torch.zeros(1, 4, 4), -SOME]), MASK.expand(3, 4, 4)
    for metric in METRICS.values():
        alone = torch.cat([metric(maps[i : i + 1], masks[i : i + 1]) for i in range(3)])
        assert torch.equal(metric(maps, masks), alone)


def test_a_random_map_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4000, 28, 28, generator=generator)
    masks = torch.zeros(4000, 28, 28, dtype=torch.bool)
    masks[:, 3:10, 5:12] = True
    chance = {"mass": 49 / 784, "rank": 49 / 784, "pointing": 49 / 784, "auc": 0.5}
    for name, metric in METRICS.items():
        scores = metric(maps, masks)
        error = scores.std() / math.sqrt(len(scores))
        assert abs(scores.mean() - chance[name]) < 3 * error, name


def test_sobel_of_a_step() -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[:, 2, :, 3:] = 0.5
    edges = sobel(image)
    assert edges[0, 2].tolist() == [0, 0, 2, 2, 0]  # (1 + 2 + 1) * 0.5 beside the step


EVERY = torch.arange(NUM_CLASSES)
CENTRES = torch.full((NUM_CLASSES, 2), 14.0)


def test_the_colour_is_carried_by_the_line() -> None:
    assert torch.equal(changed_pixels("colour", EVERY, CENTRES), render(EVERY, CENTRES).any(dim=1))


def test_a_lines_length_is_carried_by_its_ends() -> None:
    # Upright, thin: 7 pixels from 10.5 to 17.5 and 15 from 6.5 to 21.5. Row 13 and row 14 carry it half each.
    short = class_id_of({name: torch.tensor([0]) for name in ("length", "width", "angle", "colour")})
    long = class_id_of({**attributes_of(short), "length": torch.tensor([1])})
    for line in (short, long):
        mask = changed_pixels("length", line, torch.tensor([[14.0, 13.5]]))[0]
        columns = mask[13].nonzero()[:, 0].tolist()
        assert mask.sum() == mask[13].sum()
        assert columns == [6, 7, 8, 9, 10, 17, 18, 19, 20, 21]


def test_an_angles_truth_is_the_difference_to_its_neighbours() -> None:
    vertical = class_id_of(
        {**{n: torch.tensor([1]) for n in ("length", "width", "colour")}, "angle": torch.tensor([6])}
    )
    mask = changed_pixels("angle", vertical, torch.tensor([[14.0, 14.0]]))[0]
    assert torch.equal(mask, mask.flip(1))  # the two neighbours mirror each other
    assert not mask[13:15, 13:15].any()  # the middle is the same for all
    assert mask[7, 12]


def test_a_split_gives_the_truths_of_its_images() -> None:
    split = LineDataset(LineSampler(0, "test"), 2)
    rows = torch.tensor([5, 100, 191])
    lit = split.images(rows).amax(dim=1) > 0
    for head in HEADS:
        truths = split.truths(rows, head)
        assert torch.equal(truths["line"], lit)
        assert truths["counterfactual"].any(dim=(1, 2)).all()
    joint = class_head()
    assert (split.truths(rows, joint)["counterfactual"] >= split.truths(rows, HEADS[2])["counterfactual"]).all()
