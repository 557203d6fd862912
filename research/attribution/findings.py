"""The findings of a benchmark in sentences, claimed only if seeds and images allow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cnnlab.interpret.controls import EDGES
from cnnlab.interpret.method_names import method_title
from cnnlab.reporting.html import join_words, pluralize
from research.attribution.grades import ABSOLUTE
from research.attribution.table import CellResult, Table, known_mean


def answers(table: Table) -> list[str]:
    """Which methods beat an edge map, for which head and on how many networks; and how much of a grade and of
    the order is the training's."""
    found = []
    for scene in dict.fromkeys(scene for scene, _ in table.groups):
        found += list(_by_head(table, scene))
    first = next(iter(table.groups))[0]
    shares, (seeds, networks) = table.variance(first), table.alike(first)
    if shares:
        percents = {name: f"{100 * share:.0f} %" for name, share in shares.items()}
        found.append(
            f"Of the variance of grades within a network and head, {percents['method']} comes from the method, "
            f"{percents['image']} from the image and {percents['training']} from the training alone, "
            f"{percents['training × method']} from which method a training happens to suit."
        )
    if not np.isnan(seeds):
        said = f"The order of the methods is alike to {seeds:.2f} (rank correlation) between two trainings of a network"
        found.append(f"{said} and to {networks:.2f} between two networks." if not np.isnan(networks) else f"{said}.")
    return found


def heads_of(table: Table, scene: str) -> list[str]:
    """The heads that are graded in a scene."""
    return list(dict.fromkeys(cell.head for cell in table.results if cell.scene == scene))


def scene_words(scene: str) -> str:
    """What a scene is called."""
    return "plain lines" if scene == "plain" else f"scene {scene}"


def _by_head(table: Table, scene: str) -> Iterator[str]:
    unbeaten = []
    for head in heads_of(table, scene):
        won = {name: table.beaten(scene, name, head) for name in table.methods}
        most = max((count for count, _, _ in won.values()), default=0)
        networks = max(total for _, _, total in won.values())
        if not most:
            unbeaten.append(head)
            continue
        best = [name for name, (count, _, _) in won.items() if count == most]
        best = sorted(best, key=lambda name: -lead(table, scene, name, head))
        means = [mean(table, scene, name, head) for name in (best[0], EDGES)]
        rest = [method_title(name) for name in best[1:]]
        others = join_words(rest) if len(rest) < 3 else pluralize(len(rest), "other method")
        told = f", as {others} {'does' if len(rest) == 1 else 'do'}" if rest else ""
        networks_ = f"{most} of {networks} networks" if networks > 1 else "the one network"
        yield (
            f"For {head} ({scene_words(scene)}) {method_title(best[0])} beats an edge map on {networks_} "
            f"({means[0]:.2f} against {means[1]:.2f} on average){told}."
        )
    if unbeaten:
        yield f"For {join_words(unbeaten)} ({scene_words(scene)}) no method beats an edge map on any network."


def _cells(table: Table, scene: str, method: str, head: str) -> list[CellResult]:
    return [s for c, s in table.results.items() if (c.scene, c.method, c.head) == (scene, method, head)]


def mean(table: Table, scene: str, method: str, head: str) -> float:
    """The grade of a method for a head, the mean over the networks of a scene."""
    return float(known_mean([standing.mean.mean for standing in _cells(table, scene, method, head)]))


def lead(table: Table, scene: str, method: str, head: str) -> float:
    """By how much a method is ahead of the edge map for a head, the mean over the networks of a scene."""
    return float(known_mean([standing.ahead.mean for standing in _cells(table, scene, method, head)]))


def without_doubles(table: Table, scene: str) -> list[str]:
    """The methods, of each with signs either its maps or their absolute values, whichever is the better on average over
    the heads; the best first."""
    heads = heads_of(table, scene)
    means = {
        name: known_mean([lead(table, scene, name, head) for head in heads])
        for name in table.methods
        if all(_cells(table, scene, name, head) for head in heads)
    }
    best: dict[str, str] = {}
    for name in sorted(means, key=lambda name: -means[name]):
        best.setdefault(name.removesuffix(ABSOLUTE), name)
    return list(best.values())
