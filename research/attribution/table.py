"""What many grades say together: means with their intervals, who beats an edge map, and where the differences come
from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnnlab.interpret.controls import EDGES
from cnnlab.interpret.metrics import METRICS
from research.attribution.grades import ABSOLUTE, BASELINES, TRUTHS, Grades

Array = NDArray[np.float64]

# The factor of a 95 % interval by the number of values less one (Student 1908); beyond, the normal factor.
T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Cell(NamedTuple):
    """A cell of the benchmark: a method, for one head of a network in a scene, all seeds together."""

    scene: str
    network: str
    head: str
    method: str


@dataclass(frozen=True)
class CellResult:
    """The result of a method in a cell: its mean score, its margin over the edge detector (`ahead`), each with an
    interval over the seeds, or, for one seed, over the images. `beats` if the margin is above 0 over seeds and over
    images, `loses` if it is below."""

    mean: Interval
    ahead: Interval
    beats: bool
    loses: bool


@dataclass(frozen=True)
class Table:
    """Scores of several networks, `metric` against `truth`. Only images with an answer that changes with the
    counterfactual count: otherwise the network may not use the right pixels."""

    grades: Sequence[Grades]
    truth: str = "counterfactual"
    metric: str = "rank"

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Grades]]:
        """{(scene, network): the grades of its seeds}."""
        found: dict[tuple[str, str], list[Grades]] = {}
        for one in self.grades:
            found.setdefault((one.facts["scene"], one.facts["network"]), []).append(one)
        return found

    def members(self, scene: str) -> list[Grades]:
        """The grades of all networks and seeds of a scene."""
        return [one for one in self.grades if one.facts["scene"] == scene]

    def images(self, one: Grades, head: str, method: str) -> Array:
        """The grades of a method, an image each, float64 (N,), NaN where the answer does not change."""
        return np.where(one.flips[one.heads.index(head)], self.every_image(one, head, method), np.nan)

    def every_image(self, one: Grades, head: str, method: str) -> Array:
        """The grades of a method, an image each, float64 (N,), whether or not the answer changes."""
        place = one.heads.index(head), one.methods.index(method), TRUTHS.index(self.truth)
        return np.asarray(one.values[(*place, list(METRICS).index(self.metric))], dtype=np.float64)

    @cached_property
    def results(self) -> dict[Cell, CellResult]:
        """How each method does in each cell where it was not refused."""
        found = {}
        for (scene, network), members in self.groups.items():
            for head, method in product(members[0].heads, members[0].methods):
                own = np.stack([self.images(one, head, method) for one in members])
                edges = np.stack([self.images(one, head, EDGES) for one in members])
                if not np.isnan(own).all():
                    found[Cell(scene, network, head, method)] = _standing(own, edges)
        return found

    @cached_property
    def methods(self) -> list[str]:
        """The methods, baselines not among them."""
        names = dict.fromkeys(name for one in self.grades for name in one.methods)
        return [name for name in names if name not in BASELINES]

    def common(self, scene: str) -> list[str]:
        """The methods that every network of a scene has maps of."""
        there = self.members(scene)
        refusals = {name for one in there for name in one.facts["refused"]}
        return [
            name
            for name in self.methods
            if all(name in one.methods for one in there) and name.removesuffix(ABSOLUTE) not in refusals
        ]

    def beaten(self, scene: str, method: str, head: str | None = None) -> tuple[int, int, int]:
        """In how many cells of a scene a method beats the edge map, in how many it loses, and how many there are."""
        mine = [
            standing
            for cell, standing in self.results.items()
            if (cell.scene, cell.method) == (scene, method) and head in (None, cell.head)
        ]
        return sum(one.beats for one in mine), sum(one.loses for one in mine), len(mine)

    def ranks(self, scene: str) -> dict[str, Interval]:
        """The mean rank of each method over all networks, heads and seeds of a scene, 1 is the best, with its interval
        over networks and seeds, drawn anew together; the best first. Methods that a network refuses are left out."""
        rows = []
        names = self.common(scene)
        for one in self.members(scene):
            ranks = [_ranks([known_mean(self.images(one, head, name)) for name in names]) for head in one.heads]
            rows.append((one.facts["network"], np.mean(ranks, axis=0)))
        networks = list(dict.fromkeys(network for network, _ in rows))
        values = {network: np.stack([ranks for name, ranks in rows if name == network]) for network in networks}
        draws, random = [], np.random.default_rng(0)
        for _ in range(1000):
            drawn = [values[network] for network in random.choice(networks, len(networks))]
            draws.append(np.mean([v[random.integers(len(v), size=len(v))].mean(axis=0) for v in drawn], axis=0))
        mean = np.mean([v.mean(axis=0) for v in values.values()], axis=0)
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        found = {name: Interval(*map(float, three)) for name, *three in zip(names, mean, low, high, strict=True)}
        return dict(sorted(found.items(), key=lambda pair: pair[1].mean))

    def variance(self, scene: str) -> dict[str, float]:
        """What share of the variance of grades within a network and head comes from the method, the image, the training
        (seed), each two together, and the rest; the mean over networks with two seeds or more, and heads."""
        found = []
        for (place, _), members in self.groups.items():
            if place != scene or len(members) < 2:
                continue
            for head in members[0].heads:
                names = self.common(scene)
                values = np.stack([[self.images(one, head, name) for name in names] for one in members])  # (S, M, N)
                values = values[:, ~np.isnan(values).all(axis=(0, 2))]
                values = values[:, :, ~np.isnan(values).any(axis=(0, 1))]
                if values.shape[2] > 1:
                    found.append(_shares(values))
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}

    def alike(self, scene: str) -> tuple[float, float]:
        """How alike the order of the methods is, by rank correlation, between two trainings of a network, and between
        two networks, for the same head; means; NaN where there are no two."""
        seeds, networks = [], []
        groups = {network: members for (place, network), members in self.groups.items() if place == scene}
        for head in dict.fromkeys(head for members in groups.values() for head in members[0].heads):
            orders = {
                network: [[known_mean(self.images(one, head, name)) for name in self.common(scene)] for one in members]
                for network, members in groups.items()
                if head in members[0].heads
            }
            for own in orders.values():
                seeds += [_correlation(a, b) for a, b in combinations(own, 2)]
            for first, second in combinations(orders.values(), 2):
                networks += [_correlation(a, b) for a, b in product(first, second)]
        return known_mean(seeds), known_mean(networks)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each network, seed, head, method, truth and metric: the mean over the images that count. Of the
        network's own truth there is one metric more, the auc among the pixels of the counterfactual."""
        for one in self.grades:
            known = {name: one.facts[name] for name in ("protocol", "scene", "network", "seed")}
            for (h, head), (m, method) in product(enumerate(one.heads), enumerate(one.methods)):
                graded = {
                    (truth, metric): one.values[h, m, t, k]
                    for (t, truth), (k, metric) in product(enumerate(TRUTHS), enumerate(METRICS))
                }
                for (truth, metric), every in {**graded, ("own", "auc within"): one.within[h, m]}.items():
                    values = every[one.flips[h]]
                    if not np.isnan(values).all():
                        told = {"head": head, "method": method, "truth": truth, "metric": metric}
                        yield {
                            **known,
                            **told,
                            "mean": round(known_mean(values), 4),
                            "images": int((~np.isnan(values)).sum()),
                        }


def known_mean(values: Any, axis: int | None = None) -> Any:
    """The mean of the values that are not NaN, a float or along an axis; NaN without any."""
    values = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(values)
    counts = there.sum(axis=axis)
    means = np.where(there, values, 0).sum(axis=axis) / np.where(counts == 0, np.nan, counts)
    return float(means) if axis is None else means


def _standing(own: Array, edges: Array) -> CellResult:
    """Of grades float64 (seeds, N) of a method and of the edge map."""
    ahead = own - edges
    by_image = interval(known_mean(ahead, axis=0))
    over = [
        interval(np.array([known_mean(row) for row in rows])) if len(rows) > 1 else interval(rows[0])
        for rows in (own, ahead)
    ]
    beats, loses = min(over[1].low, by_image.low) > 0, max(over[1].high, by_image.high) < 0
    return CellResult(over[0], over[1], beats, loses)


def interval(values: Array) -> Interval:
    """The mean of the values float64 (N,) that are not NaN, with its interval; that is NaN where there are fewer than
    two."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        mean = known_mean(values) if len(values) else math.nan
        return Interval(mean, math.nan, math.nan)
    factor = T95[len(values) - 1] if len(values) <= len(T95) else 1.96
    half = factor * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def _ranks(values: Sequence[float]) -> Array:
    """Ranks from 1, the highest first; the mean rank among equals."""
    given = np.nan_to_num(np.array(values), nan=-1.0)
    above, equal = given[None] > given[:, None], given[None] == given[:, None]
    return np.asarray(above.sum(axis=1) + (equal.sum(axis=1) + 1) / 2, dtype=np.float64)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation where both are known."""
    known = ~np.isnan(first) & ~np.isnan(second)
    a, b = (_ranks(list(np.array(values)[known])) for values in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def _shares(values: Array) -> dict[str, float]:
    """The shares of the sum of squares of `values` (seeds, methods, images): main effects, each two, and the rest."""
    names = {"training": 0, "method": 1, "image": 2}
    centred = values - values.mean()
    main = {
        name: centred.mean(axis=tuple(a for a in range(3) if a != axis), keepdims=True) for name, axis in names.items()
    }
    effects: dict[str, Array] = dict(main)
    for first, second in combinations(names, 2):
        other = next(axis for name, axis in names.items() if name not in (first, second))
        effects[f"{first} × {second}"] = centred.mean(axis=other, keepdims=True) - main[first] - main[second]
    total = np.square(centred).sum()
    parts = {
        name: float(np.square(np.broadcast_to(effect, values.shape)).sum() / total) for name, effect in effects.items()
    }
    return {**parts, "rest": 1 - sum(parts.values())}
