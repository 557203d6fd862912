"""python -m research.attribution: scenes, grades and statistics against numbers worked out by hand, and the command."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from cnnlab.interpret.network import HeadWrapper
from cnnlab.utils.errors import UserError
from research.attribution.analysis import Estimate, correlations, discoveries, estimate, table
from research.attribution.grades import TRIVIAL, Grades, grade, share_found
from research.attribution.scenes import SCENES, Pairs, SceneDataModule, pairs, parts
from research.attribution.shapley import exchange_shapley
from tests.conftest import in_process

NAME = "research.attribution"
SMALL = (
    *("breadth=quick", "images=4", "method=[grad_cam,saliency]"),
    "networks.multihead=[multihead,'data.train_per_class=6','data.val_per_class=2','data.test_per_class=3',"
    "'trainer.max_epochs=1']",
)


def test_the_share_found_is_the_weight_of_the_highest_pixels() -> None:
    weights = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])  # two pixels count
    assert share_found(torch.tensor([[[9.0, 8.0], [1.0, 0.0]]]), weights).tolist() == [1]
    assert share_found(torch.tensor([[[9.0, 1.0], [8.0, 0.0]]]), weights).tolist() == [0.75]
    assert share_found(torch.tensor([[[0.0, 0.0], [9.0, 8.0]]]), weights).tolist() == [0]
    one_place_for_two = torch.tensor([[[5.0, 5.0], [9.0, 0.0]]])
    assert share_found(one_place_for_two, weights).tolist() == [0.5]
    assert share_found(torch.zeros(1, 2, 2), weights).tolist() == [0.5]  # two of four pixels


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size", [28, 64])
def test_a_pair_differs_only_where_its_line_does(scene: str, size: int) -> None:
    if size > 28 and scene != "photos":
        with pytest.raises(UserError, match="choose 28, or more with"):
            SceneDataModule(scene, size)
        return
    data, plain = (pairs(SceneDataModule(*which, test_per_class=1)) for which in ((scene, size), ("plain", 28)))
    assert data.images.shape == (96, 3, size, size)
    kinds = torch.stack(list(data.targets.values()), dim=1)
    assert len(kinds.unique(dim=0)) == 96  # one of each kind
    assert {name: len(other) for name, other in data.others.items()} == {
        "length": 1,
        "width": 1,
        "angle": 2,
        "colour": 1,
    }
    for head in data.targets:
        changed = (data.changes(head) > 0).flatten(1).sum(dim=1)
        assert (changed > 0).all()
        alone = (plain.changes(head) > 0).flatten(1).sum(dim=1)
        if scene == "photos":  # where the line lies and how it is drawn stay the same
            assert (changed - alone).abs().max() <= 0.2 * alone.max()


def test_the_upper_line_is_the_one_that_is_asked_about() -> None:
    """The pixels that change colour are the upper line's; the other line has either colour, and lies lower."""
    data = pairs(SceneDataModule("second_line", test_per_class=1))
    upper = data.changes("colour") > 0
    lower = (data.images.amax(dim=1) > 0) & ~upper
    rows = torch.arange(28.0)[:, None]
    places = [(rows * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)) for mask in (upper, lower)]
    assert (places[0] < places[1]).all()
    red = ((data.images[:, 0] - data.images[:, 2]) * lower).sum(dim=(1, 2)) > 0
    asked_red = data.targets["colour"] == 0
    assert 30 < red.sum() < 66
    assert 30 < (red == asked_red).sum() < 66


@pytest.mark.parametrize(("scale", "size"), [(2, 28), (1, 64)])
def test_splits_have_other_parts_of_the_photographs(scale: int, size: int) -> None:
    """No column of pixels is in two splits; the parts are half of those that fit, the ones with the most contrast."""
    by_split = [parts(scale, size, split) for split in ("train", "val", "test")]
    for choices in zip(*by_split, strict=True):
        spans = [(min(x for _, x in corners), max(x for _, x in corners) + size) for _, corners in choices]
        assert all(last <= first for (_, last), (first, _) in pairwise(spans))
    picture, corners = by_split[0][0]
    picked = [picture[y : y + size, x : x + size].std(correction=0) for y, x in corners[:: len(corners) // 20]]
    every = (
        picture[:, : int(0.6 * picture.shape[1])].unfold(0, size, 7).unfold(1, size, 7).std(dim=(2, 3), correction=0)
    )
    assert min(picked) > every.median() - 0.01


def test_no_colour_finds_the_line_on_a_photograph() -> None:
    """Its pixels are not much brighter, purer or poorer in one colour than the others; those of a plain line are
    brighter."""

    def found(data: Pairs, maps: Tensor) -> float:
        return torch.stack([share_found(maps, data.changes(head)).mean() for head in data.targets]).mean().item()

    data = pairs(SceneDataModule("photos", test_per_class=1))
    red, _, blue = data.images.unbind(dim=1)
    bounds = ((torch.maximum(red, blue), 0.15), ((red - blue).abs(), 0.33), (-torch.minimum(red, blue), 0.15))
    for maps, bound in bounds:
        assert found(data, maps) < bound
    plain = pairs(SceneDataModule("plain", test_per_class=1))
    assert share_found(plain.images.amax(dim=1), plain.changes("colour")).mean() > 0.8


class _Product(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        first, second, third = images[:, 0, 0].unbind(dim=1)
        return torch.stack([first * second + 2 * third, 0 * first], dim=1)


def test_shapley_values_of_a_product_are_shared_out() -> None:
    image, other = torch.tensor([[[3.0, 2.0, 5.0]]]), torch.tensor([[[0.0, 0.0, 5.0]]])
    values = exchange_shapley(HeadWrapper(_Product()), image, other, target=0, orders=3)
    assert values.shape == (3, 1, 3)
    assert values.tolist() == [[[3.0, 3.0, 0.0]]] * 3  # an order and its reverse give 6 to each once
    third = exchange_shapley(HeadWrapper(_Product()), image, torch.zeros(1, 1, 3), target=0)
    assert third.mean(dim=0).tolist() == [[3.0, 3.0, 10.0]]
    assert exchange_shapley(HeadWrapper(_Product()), image, image, target=0).eq(0).all()


class _ByColour(nn.Module):
    """Two heads: colour is red less blue anywhere; length never changes its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        red, blue = (self.scale(images[:, channel].sum(dim=(1, 2))[:, None]) for channel in (0, 2))
        return {"length": torch.cat([red + blue + 1, 0 * red], dim=1), "colour": torch.cat([red, blue], dim=1)}


def test_a_network_whose_evidence_is_known() -> None:
    every = pairs(SceneDataModule(test_per_class=1))
    asked = ("length", "colour")
    data = Pairs(every.images, {n: every.targets[n] for n in asked}, {n: every.others[n] for n in asked})

    def perfect(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        return data.changes(str(net.head))

    def refuses(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
        raise UserError("not this network")

    found = grade(_ByColour(), {"perfect": perfect, "refuses": refuses}, data, {"scene": "plain"}, shapley_images=4)
    assert found.facts["refused"] == {"refuses": "not this network"}
    names = found.facts["methods"]
    assert found.found.shape == (2, 2, len(TRIVIAL) + 2, 96)
    assert (found.found[:, :, names.index("perfect")] == 1).all()
    assert np.isnan(found.found[:, :, names.index("refuses")]).all()
    assert found.flips[0].sum() == 0
    assert found.flips[1].all()
    assert found.right[1].all()
    # Shapley values are the pixels' own brightness: so is |x - x'|.
    assert found.own[1, -1] == pytest.approx(1, abs=1e-3)
    assert found.own[1, names.index("image brightness")] == pytest.approx(1, abs=1e-3)
    assert found.reliability[1] == pytest.approx(1, abs=1e-3)


def _grades(network: str, seed: int, trained: float, untrained: float, edges: float = 0.3) -> Grades:
    """Grades of a method on three images, of which the last does not count."""
    methods = [*TRIVIAL, "mine"]
    found = np.full((2, 1, len(methods), 3), 0.1, dtype=np.float16)
    found[:, 0, list(TRIVIAL).index("edges (Sobel)")] = edges
    found[:, 0, -1, :2] = [[trained] * 2, [untrained] * 2]
    flips = np.array([[True, True, False]])
    facts = {"scene": "plain", "network": network, "seed": seed, "heads": ["colour"], "methods": methods}
    own = np.full((1, len(methods) + 1, 2), 0.5, dtype=np.float16)
    return Grades(facts, found, flips, flips, own, np.full((1, 2), 0.9, dtype=np.float16))


def test_gains_and_leads_are_those_of_images_that_count() -> None:
    frame = table([_grades("a", 0, 0.75, 0.25), _grades("a", 1, 0.25, 0.25)])
    mine = frame[frame["method"] == "mine"]
    assert mine["gain"].tolist() == [0.5, 0.0]
    assert mine["lead"].tolist() == pytest.approx([0.45, -0.05], abs=1e-3)


def test_networks_are_the_units() -> None:
    """Ten seeds of one network are no more than one: Student's t over the networks alone."""
    gains = pd.Series({"a": 0.2, "b": 0.3})
    found = estimate(gains)
    half = 12.706 * 0.05  # t of one degree of freedom; the error of the mean of 0.2 and 0.3 is 0.05
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-4)
    assert str(estimate(pd.Series({"a": 0.2}))) == "+0.20"
    assert estimate(pd.Series({"a": 0.2, "b": np.nan})).networks == 1


def test_several_comparisons_are_corrected_for() -> None:
    """Benjamini and Hochberg: of 0.01, 0.02 and 0.04 all hold at 5 %, of 0.02, 0.05 and 0.06 none does."""

    def of(*ps: float) -> list[bool]:
        return discoveries([Estimate(0.1, 0, 0, p, 8) for p in ps])

    assert of(0.01, 0.02, 0.04) == [True, True, True]
    assert of(0.02, 0.05, 0.06) == [False, False, False]
    assert discoveries([Estimate(-0.1, 0, 0, 0.001, 8)]) == [False]


def test_a_correlation_is_over_methods_and_then_over_networks() -> None:
    rows = [
        {"network": network, "method": method, "grade": grade_, "untrained": untrained}
        for network, values in {"a": (1, 2, 3), "b": (3, 2, 1)}.items()
        for method, grade_, untrained in zip("xyz", values, (1, 2, 3), strict=True)
    ]
    assert correlations(pd.DataFrame(rows), "grade", "untrained").mean == pytest.approx(0)
    assert correlations(pd.DataFrame(rows[:3]), "grade", "untrained").mean == pytest.approx(1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    in_process(NAME, *SMALL, f"out={folder}")
    return folder


def test_the_command_trains_and_grades(small: Path) -> None:
    found = Grades.load(small / "grades" / "second_line_multihead_0.npz")
    assert found.facts["methods"] == [*TRIVIAL, "grad_cam", "saliency"]
    assert found.facts["heads"] == ["length", "width", "angle", "colour"]
    assert ((found.found >= 0) & (found.found <= 1)).all()
    assert (found.found[0, :, -2:] != found.found[1, :, -2:]).any()  # training changes maps
    assert (found.found[0, :, : len(TRIVIAL)] == found.found[1, :, : len(TRIVIAL)]).all()
    assert (small / "networks" / "second_line_multihead_0" / "summary.json").is_file()


def test_what_is_there_is_not_made_again_unless_something_else_is_asked_for(small: Path) -> None:
    files = [
        small / "grades" / "second_line_multihead_0.npz",
        small / "networks" / "second_line_multihead_0" / "summary.json",
    ]
    before = [path.stat().st_mtime_ns for path in files]
    in_process(NAME, *SMALL, f"out={small}")
    assert [path.stat().st_mtime_ns for path in files] == before
    in_process(NAME, *SMALL, f"out={small}", "images=3")
    assert [path.stat().st_mtime_ns > old for path, old in zip(files, before, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("grid.fog=[multihead]",), "there is no setting 'grid.fog'"),
        (
            ("grid.second_line=[multihed]",),
            "grid.second_line: there is no network 'multihed'; did you mean 'multihead'?",
        ),
        (("breadth=qick",), "there is no breadth 'qick'; did you mean 'quick'?"),
        (("split=tset",), "split=tset: choose one of train, val, test"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as user_errors:
        in_process(NAME, *SMALL, f"out={tmp_path}/out", *words)
    assert message in str(user_errors.value)
    assert "\n" not in str(user_errors.value)
    assert not (tmp_path / "out").exists()


def test_grades_that_were_cut_short_are_named(small: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes((small / "grades" / "second_line_multihead_0.npz").read_bytes()[:1000])
    with pytest.raises(UserError, match="is broken"):
        Grades.load(broken)
