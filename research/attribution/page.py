"""The page of a benchmark: its answers, its pictures and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab import plots
from cnnlab.data.ground_truth import LineTruths
from cnnlab.interpret.controls import BRIGHTNESS, EDGES, RANDOM
from cnnlab.interpret.method_names import method_title
from cnnlab.reporting import html
from cnnlab.utils.console import echo, percent
from cnnlab.utils.io import to_csv, write_atomically, write_json
from cnnlab.utils.versions import versions
from research import TEMPLATES
from research.attribution import figures
from research.attribution.findings import answers, heads_of, lead, mean, scene_words, without_doubles
from research.attribution.grades import ABSOLUTE, BY_HAND, CASCADE, SHOWN, UPPER_BOUND, Grades
from research.attribution.table import Table, interval, known_mean

Rows = list[list[str]]

FEWEST_WRONG = 10  # wrong answers for a grade


def written(folder: Path, table: Table, settings: Any) -> Path:
    """Write the table (`scores.csv`), pictures, page and manifest into `folder`; returns the page's path."""
    write_atomically(folder / "scores.csv", to_csv(list(table.rows())))
    by_hand = [one for one in table.grades if one.facts["scene"] == BY_HAND]
    table = Table([one for one in table.grades if one not in by_hand] or table.grades)
    scenes, first = list(dict.fromkeys(scene for scene, _ in table.groups)), table.grades[0]
    plots.save(_leads(table, scenes), folder / "leads.png")
    for head in first.heads:
        plots.save(_maps(table, first, head), folder / f"maps_{head}.png")
    manifest = {
        "protocol": {one.facts["scene"]: one.facts["protocol"] for one in table.grades},
        "networks": [one.facts for one in [*table.grades, *by_hand]],
        "settings": settings,
        "versions": versions(),
    }
    write_json(folder / "manifest.json", manifest)
    tables = {
        "The networks": networks(table),
        **({"Methods by scene": by_scene(table)} if len(scenes) > 1 else {}),
        **{f"Methods by mean rank, {scene_words(scene)}": ranks(table, scene) for scene in scenes},
        "The data's truth and the network's own": own_truth(table, scenes[0]),
        "Right answers and wrong ones": wrong_answers(table),
        "Random weights": random_weights(table, scenes[0]),
        "Methods that say the same": agreement(table, scenes[0]),
        "What a map costs": costs(table, scenes[0]),
    }
    if by_hand:
        tables["A network whose weights were set by hand"] = known_evidence(Table(by_hand, "own"), table, scenes[0])
    tables = {title: rows for title, rows in tables.items() if len(rows) > 1}
    said = answers(table)
    page = html.render(
        "attribution.html", TEMPLATES, manifest=manifest, answers=said, folder=folder, heads=first.heads, tables=tables
    )
    write_atomically(folder / "index.html", page)
    echo("\n".join(said))
    echo(f"page  {folder / 'index.html'}")
    return folder / "index.html"


def _leads(table: Table, scenes: list[str]) -> plots.Figure:
    """How far each method is ahead of the edge map, for every scene and head, and on how many networks it beats it."""
    methods = without_doubles(table, scenes[0])
    columns = [(scene, head) for scene in scenes for head in heads_of(table, scene)]
    values = np.array([[lead(table, scene, name, head) for scene, head in columns] for name in methods])
    texts = []
    for name in methods:
        won = [table.beaten(scene, name, head) for scene, head in columns]
        texts.append([f"{beats}/{total}" if total else "" for beats, _, total in won])
    groups = {scene_words(scene): heads_of(table, scene) for scene in scenes}
    return figures.leads([method_title(name) for name in methods], groups, values, texts)


def _maps(table: Table, one: Grades, head: str) -> plots.Figure:
    """The maps of every method for one image and head of a network, the best first by its grade over all images."""
    h = one.heads.index(head)
    place = int(np.argmax(one.flips[h, :SHOWN]))
    data = LineTruths(one.values.shape[-1], one.facts["drawn"])
    picture = (data.images[place] * 255).round().byte().numpy()
    truth = np.broadcast_to(data.counterfactuals[head][place].numpy() * np.uint8(255), picture.shape)
    names = [
        name for name in one.methods if name != UPPER_BOUND and not np.isnan(one.maps[h, one.methods.index(name)]).any()
    ]
    names = [name for name in names if not name.endswith(ABSOLUTE) or name.removesuffix(ABSOLUTE) in names]
    means = {name: known_mean(table.images(one, head, name)) for name in names}
    order = sorted(names, key=lambda name: -means[name])
    tiles = [plots.heat(one.maps[h, one.methods.index(name), place].astype(np.float32)) for name in order]
    captions = [f"{means[name]:.2f}\n{method_title(name)}" for name in order]
    title = f"{head}, {one.facts['network']}: every method on one image, the best first by its rank accuracy over all"
    return plots.images(
        np.stack([picture, truth, *tiles]), ["\nthe image", "\ntrue pixels", *captions], title, columns=7
    )


def networks(table: Table) -> Rows:
    """A row a network and scene: its seeds, how often it is right, and how many images count."""
    rows: Rows = [
        ["network", "scene", "seeds", "right", "images that count", "pixels of its own truth", "… proven smallest"]
    ]
    for (scene, network), members in table.groups.items():
        right, flipping = (known_mean([getattr(one, name) for one in members]) for name in ("right", "flips"))
        sizes = np.concatenate([one.own_size[one.own_size > 0] for one in members])
        proven = known_mean(np.concatenate([one.own_proven[one.own_size > 0] for one in members]))
        rows.append(
            [network, scene_words(scene), str(len(members)), percent(right), percent(flipping),
             f"{np.median(sizes):.0f}" if len(sizes) else "", f"{100 * proven:.0f} %" if len(sizes) else ""]
        )  # fmt: skip
    return rows


def ranks(table: Table, scene: str) -> Rows:
    """A row a method: its mean rank with its interval, its grade by head, and how often it beats the edge map."""
    heads = heads_of(table, scene)
    rows: Rows = [["method", "mean rank", *heads, "beats edges", "loses to edges"]]
    for name, rank in table.ranks(scene).items():
        beats, loses, total = table.beaten(scene, name)
        grades = [f"{mean(table, scene, name, head):.2f}" for head in heads]
        said = f"{rank.mean:.1f} [{rank.low:.1f}, {rank.high:.1f}]"
        rows.append([method_title(name), said, *grades, f"{beats} of {total}", f"{loses} of {total}"])
    for name in (EDGES, BRIGHTNESS, UPPER_BOUND, RANDOM):
        rows.append([name, "", *(f"{mean(table, scene, name, head):.2f}" for head in heads), "", ""])
    return rows


def by_scene(table: Table) -> Rows:
    """A row a method: its mean rank in each scene, and on how many networks and heads of it it beats the edge map."""
    ranks_ = {scene: table.ranks(scene) for scene in dict.fromkeys(scene for scene, _ in table.groups)}
    rows: Rows = [["mean rank (beats edges)", *map(scene_words, ranks_)]]
    for name in dict.fromkeys(name for found in ranks_.values() for name in found):
        cells = []
        for scene, found in ranks_.items():
            beats, _, total = table.beaten(scene, name)
            cells.append(f"{found[name].mean:.1f} ({beats} of {total})" if name in found else "")
        rows.append([method_title(name), *cells])
    return rows


def own_truth(table: Table, scene: str) -> Rows:
    """A row a method: auc against the data's truth and against the network's own; whether, among the pixels that are
    true by the data, it puts those first that this network needs (0.5 is chance), and by how much better it does so
    than the brightness of the pixels, with the 95 % interval over the networks; means over networks and heads."""
    rows: Rows = [["method", "auc: data's truth", "network's own", "own among the data's", "ahead of brightness"]]
    data, own = Table(table.grades, "counterfactual", "auc"), Table(table.grades, "own", "auc")
    found: list[tuple[float, list[str]]] = []
    for name in [*without_doubles(table, scene), EDGES, BRIGHTNESS]:
        means = [known_mean([mean(one, scene, name, head) for head in heads_of(table, scene)]) for one in (data, own)]
        groups = [members for (place, _), members in table.groups.items() if place == scene]
        inside, bright = (np.array([_within(members, one) for members in groups]) for one in (name, BRIGHTNESS))
        ahead, told = interval(inside - bright), ""
        if name != BRIGHTNESS:
            told = f"{ahead.mean:+.2f}" + (f" [{ahead.low:+.2f}, {ahead.high:+.2f}]" if len(groups) > 1 else "")
        average = known_mean(inside)
        found.append((average, [method_title(name), *(f"{value:.2f}" for value in (*means, average)), told]))
    return rows + [cells for _, cells in sorted(found, key=lambda pair: -pair[0])]


def _within(members: Sequence[Grades], name: str) -> float:
    """How well a method tells the pixels that a network needs from the other true ones, over its seeds, heads and those
    images that count."""
    values = [np.where(one.flips, one.within[:, one.methods.index(name)], np.nan) for one in members]
    return float(known_mean(np.stack(values)))


def wrong_answers(table: Table) -> Rows:
    """Return a row per method: its scores on right and on wrong answers, with 95 % intervals over the images, averaged
    over seeds, for each network and head with at least FEWEST_WRONG wrong answers. Maps are for the given answer; all
    images count. Without such networks only the header."""
    columns = []
    for (scene, network), members in table.groups.items():
        for head in members[0].heads:
            right = np.stack([one.right[one.heads.index(head)] for one in members])  # (seeds, N)
            if (~right).sum() >= FEWEST_WRONG:
                columns.append((f"{head}, {network}, {scene_words(scene)}", members, head, right))
    header = ["method"]
    for title, _, _, right in columns:
        header += [f"{title}: {right.sum()} right", f"{(~right).sum()} wrong"]
    rows: Rows = [header]
    for name in [*table.methods, EDGES, BRIGHTNESS] if columns else []:
        cells = []
        for _, members, head, right in columns:
            values = np.stack([table.every_image(one, head, name) for one in members])
            cells += [interval(known_mean(np.where(which, values, np.nan), axis=0)) for which in (right, ~right)]
        if not any(np.isnan(cell.mean) for cell in cells):
            rows.append([method_title(name), *(f"{cell.mean:.2f} ± {cell.high - cell.mean:.2f}" for cell in cells)])
    return rows


def known_evidence(by_hand: Table, table: Table, scene: str) -> Rows:
    """Return a row per method: how much of the known evidence of the hand-built network it finds, and its score for the
    same head of trained networks."""
    head = heads_of(by_hand, BY_HAND)[0]
    rows: Rows = [["method", f"{head}, left half: rank", f"{head}, trained networks: rank"]]
    names = [*by_hand.methods, EDGES, BRIGHTNESS, UPPER_BOUND]
    graded = {cell.method: standing.mean.mean for cell, standing in by_hand.results.items()}
    for name in sorted((name for name in names if name in graded), key=lambda name: -graded[name]):
        rows.append([method_title(name), f"{graded[name]:.2f}", f"{mean(table, scene, name, head):.2f}"])
    return rows


def random_weights(table: Table, scene: str) -> Rows:
    """Return a row per method: the correlation of its maps with those after randomising layers; 0 is right."""
    rows: Rows = [["method", *CASCADE]]
    members = table.members(scene)
    for name in table.common(scene):
        values = np.concatenate([one.cascade[:, one.methods.index(name)] for one in members])
        if not np.isnan(values).all():
            rows.append([method_title(name), *(f"{value:.2f}" for value in known_mean(values, axis=0))])
    return rows[:1] + sorted(rows[1:], key=lambda row: abs(float(row[-1])))


def agreement(table: Table, scene: str) -> Rows:
    """Return a row per method: the rank correlation of its maps with all others, and with the most similar one; means
    over networks and heads."""
    members = table.members(scene)
    names = [name for name in without_doubles(table, scene) if name in table.common(scene)]
    places = [[one.methods.index(name) for name in names] for one in members]
    alike = known_mean(
        np.concatenate([one.agreement[:, p][:, :, p] for one, p in zip(members, places, strict=True)]), axis=0
    )
    np.fill_diagonal(alike, np.nan)
    rows: Rows = [["method", "all others", "the most alike", "by"]]
    for name, values in zip(names, alike, strict=True):
        most = int(np.nanargmax(values)) if not np.isnan(values).all() else None
        if most is not None:
            told = [f"{known_mean(values):.2f}", method_title(names[most]), f"{values[most]:.2f}"]
            rows.append([method_title(name), *told])
    return rows


def costs(table: Table, scene: str) -> Rows:
    """A row a method: forward passes and milliseconds for the map of one image and head, the mean over networks."""
    members = table.members(scene)
    devices = sorted({one.facts["device"] for one in members})
    rows: Rows = [["method", "forward passes", f"milliseconds ({', '.join(devices)})"]]
    for name in (name for name in table.methods if not name.endswith(ABSOLUTE)):
        passes, seconds = (
            known_mean([getattr(one, what)[:, one.methods.index(name)] for one in members])
            for what in ("passes", "seconds")
        )
        if not np.isnan(passes):
            rows.append([method_title(name), f"{passes:.0f}", f"{1000 * seconds / members[0].values.shape[-1]:.1f}"])
    return rows
