"""What many grades say together. Networks are the units: another seed of a network is no new evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from research.attribution.grades import DIFFERENCE, TRIVIAL, Grades

Array = NDArray[np.float64]
CEILING = "another half of the Shapley values"


class Estimate(NamedTuple):
    """A mean over networks, its 95 % interval, the p-value of 0, and how many networks there are."""

    mean: float
    low: float
    high: float
    p: float
    networks: int

    def __str__(self) -> str:
        if self.networks < 2:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def estimate(values: pd.Series) -> Estimate:
    """Return the mean over networks of `values`, one for each network. Student's t; with as many values from every
    network this is the mixed model with the network as random effect."""
    known = values.dropna().to_numpy(dtype=float)
    if len(known) < 2:
        return Estimate(float(known.mean()) if len(known) else np.nan, np.nan, np.nan, np.nan, len(known))
    result = stats.ttest_1samp(known, 0)
    low, high = result.confidence_interval(0.95)
    return Estimate(float(known.mean()), float(low), float(high), float(result.pvalue), len(known))


def table(every: Sequence[Grades]) -> pd.DataFrame:
    """Return a row per scene, network, seed, head and map: `grade`, `untrained` and `own`, means over the images whose
    answer changes, `gain` = grade - untrained, and `lead`, the grade less that of the best trivial map of this network
    and head. A trivial map leads the best one by 0 or less."""
    rows = []
    for one in every:
        for h, head in enumerate(one.facts["heads"]):
            found = np.where(one.flips[h], one.found[:, h].astype(float), np.nan)
            means, own = known_mean(found), known_mean(one.own[h].astype(float))
            best = means[0, : len(TRIVIAL)].max()
            place = {name: one.facts[name] for name in ("scene", "network", "seed")}
            for m, name in enumerate(one.facts["methods"]):
                rows.append(
                    {**place, "head": head, "method": name, "grade": means[0, m], "untrained": means[1, m],
                     "gain": means[0, m] - means[1, m], "lead": means[0, m] - best, "own": own[m]}
                )  # fmt: skip
            reliability = float(known_mean(one.reliability[h].astype(float)))
            extra = {"grade": np.nan, "untrained": np.nan, "gain": np.nan, "lead": np.nan}
            rows.append({**place, "head": head, "method": DIFFERENCE, **extra, "own": own[-1]})
            rows.append({**place, "head": head, "method": CEILING, **extra, "own": reliability})
    return pd.DataFrame(rows)


def known_mean(values: Array) -> Array:
    """Return means over the last axis without NaN, and NaN where there is nothing else."""
    rows = pd.DataFrame(values.reshape(-1, values.shape[-1]))
    return rows.mean(axis=1).to_numpy().reshape(values.shape[:-1])  # type: ignore[no-any-return]


def by_network(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the means over seeds and heads, a row per method and a column per network."""
    return frame.pivot_table(index="method", columns="network", values=column, aggfunc="mean", sort=False, dropna=False)


def methods_of(frame: pd.DataFrame) -> list[str]:
    """Return the methods that are neither trivial maps nor references, in their order."""
    return [name for name in dict.fromkeys(frame["method"]) if name not in (*TRIVIAL, DIFFERENCE, CEILING)]


def discoveries(estimates: Sequence[Estimate]) -> list[bool]:
    """Return which means are above 0 at a false discovery rate of 5 % (Benjamini and Hochberg 1995)."""
    ps = np.array([1.0 if np.isnan(one.p) else one.p for one in estimates])
    below = stats.false_discovery_control(ps) <= 0.05
    return [bool(ok) and one.mean > 0 for ok, one in zip(below, estimates, strict=True)]


def correlations(frame: pd.DataFrame, first: str, second: str) -> Estimate:
    """Return Spearman's correlation of two columns over the methods of a scene, for each network, their mean."""
    methods = methods_of(frame)
    one, other = (by_network(frame, column).loc[methods] for column in (first, second))
    return estimate(pd.Series({name: one[name].corr(other[name], method="spearman") for name in one}))
