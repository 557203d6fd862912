"""The scores of one run's heatmaps: computed on a sample of the test split and written to a new folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cnnlab import plots
from cnnlab.build import build_methods, user_errors
from cnnlab.data.datamodule import sample_indices
from cnnlab.explain.attribution import Method
from cnnlab.explain.attribution_metrics import METRICS, bootstrap_ci
from cnnlab.explain.evaluation import (
    CHANCE,
    EDGES,
    UPPER_BOUND,
    WITHOUT_NETWORK,
    AttributionScore,
    Sample,
    evaluate,
    insertion_deletion,
)
from cnnlab.explain.method_names import method_title
from cnnlab.hardware import disable_malloc_trim
from cnnlab.html import join_words, render
from cnnlab.io import new_folder, to_csv, write_atomically, write_json
from cnnlab.log import as_table, echo
from cnnlab.models.heads import Head
from cnnlab.models.networks import MultiHeadNet
from cnnlab.provenance import versions
from cnnlab.result import Result
from cnnlab.runs import Run, open_run

Rows = list[list[str]]

NO_TRUTH = "this data set has no true pixels: heatmaps are graded by insertion and deletion curves instead"


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Result):
    """How right the heatmaps of a network are: `scores`, one for each head, method, truth and metric; where the data
    set has no true pixels, `curves` {insertion and deletion (of a head): {method: float (steps + 1,)}}, the mean
    probability of the predicted class."""

    scores: Sequence[AttributionScore]
    heads: Sequence[str]
    methods: Sequence[str]
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # {method: why its maps cannot be trusted}

    def tables(self) -> dict[str, Rows]:
        """{title: rows, the header first}, to be read."""
        if self.curves:
            return {"Mean probability over the curve": _pivot(self.scores, ("insertion", "deletion"))}
        return _tables(self.scores)

    def rows(self) -> list[dict[str, Any]]:
        return [score.row() for score in self.scores]

    def plot(self) -> plots.Figure:
        """Rank accuracy with its interval, against the baselines; or the curves."""
        if self.curves:
            return plots.shares(self.curves, "share of pixels", "probability of the predicted class")
        return _truth_figure(self.scores, self.heads, self.methods, ("rank",))

    def plot_all(self) -> plots.Figure:
        """As `plot`, with every metric."""
        return self.plot() if self.curves else _truth_figure(self.scores, self.heads, self.methods, tuple(METRICS))

    def answer(self) -> list[str]:
        """Whether the heatmaps are right, in a sentence or two: which methods do better than an edge map, beyond both
        intervals."""
        if self.curves:
            return [
                self._against_baselines(kind, higher) for kind, higher in (("insertion", True), ("deletion", False))
            ]
        by_head: dict[str, list[str]] = {}
        for head in self.heads:
            every = [s for s in self.scores if (s.head, s.metric, s.predictions) == (head, "rank", "all")]
            truth = min((s.truth for s in every), default="")  # the counterfactual one before the line
            rank = {s.method: s for s in every if s.truth == truth and s.n}
            if EDGES not in rank:
                continue
            better = [name for name in self._trusted if name in rank and rank[name].low > rank[EDGES].high]
            said = [f"{method_title(name)} ({rank[name].mean:.2f} against {rank[EDGES].mean:.2f})" for name in better]
            by_head.setdefault(join_words(said), []).append(head)
        found = [
            f"For {join_words(heads)}, {said} {'finds' if said.count(' against ') == 1 else 'find'} the pixels that "
            "decide better than a mere edge map of the image."
            for said, heads in by_head.items() if said
        ]  # fmt: skip
        if "" in by_head:
            found.append(
                f"For {join_words(by_head[''])}, no method does better than a mere edge map, by rank accuracy."
            )
        return found

    @property
    def _trusted(self) -> list[str]:
        return [name for name in self.methods if name not in self.warnings]

    def _against_baselines(self, kind: str, higher: bool) -> str:
        own = {(s.head, s.method): s for s in self.scores if s.metric == kind}
        sign = 1 if higher else -1
        better = [
            name
            for name in self._trusted
            if all(
                min(sign * own[head, name].low, sign * own[head, name].high)
                > max(
                    sign * edge for rival in WITHOUT_NETWORK for edge in (own[head, rival].low, own[head, rival].high)
                )
                for head in self.heads
            )
        ]
        told = join_words([method_title(name) for name in better]) or "no method"
        verb = "tell" if len(better) > 1 else "tells"
        return f"By {kind}, {told} {verb} more than an edge map and a random one do."

    def __repr__(self) -> str:
        title, lines = next(iter(self.tables().items()))  # without the intervals
        return f"{title}\n{as_table([[cell.partition(' [')[0] for cell in line] for line in lines], left=2)}"


def score(
    run: Run, methods: Mapping[str, Method], images: int = 1000, progress: Callable[[str], None] = lambda _: None
) -> Scores:
    """The heatmaps of `methods` graded on `images` test images of a run, drawn at random."""
    split, heads = run.test_split, run.task.heads
    rows = sample_indices(len(split), images)
    truths = {head.name: split.truths(rows, head) for head in heads}
    sample = Sample(split.inputs(rows), split.targets(rows), truths)
    names = [head.name for head in heads]
    with user_errors("method"):
        methods = {name: run.bind_baselines(method) for name, method in methods.items()}
        if all(truths.values()):
            warnings: dict[str, str] = {}
            scores = evaluate(run.net, heads, methods, sample, progress, warnings)
            return Scores(scores, names, list(methods), warnings=warnings)
        echo(NO_TRUTH)
        return Scores(*_without_truth(run.net, heads, methods, sample, progress))


def score_run(cfg: DictConfig) -> Path:
    """Grade what `cfg` (conf/score.yaml) asks for; returns the page's path.

    Raises `UserError` for what the user can mend, before anything is written.
    """
    disable_malloc_trim()
    run = open_run(cfg.run)
    methods = build_methods(cfg.method)
    with Console().status("") as status:
        scores = score(run, methods, cfg.images, status.update)
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "score")
    write_atomically(folder / "scores.csv", to_csv(scores.rows()))
    plots.save(scores.plot(), folder / "scores.png")
    settings = OmegaConf.to_container(cfg)
    names = {"run": str(run.path), "title": run.title}
    counts = {"images": cfg.images, "test_images": len(run.test_split)}
    manifest = {**names, **counts, "settings": settings, "warnings": scores.warnings, "versions": versions()}
    every = folder / "scores_all.png"
    if not scores.curves:
        plots.save(scores.plot_all(), every)
    html = render("score.html", manifest=manifest, scores=scores, picture=folder / "scores.png", every=every)
    write_atomically(folder / "index.html", html)
    write_json(folder / "manifest.json", manifest)
    echo(str(scores))
    echo("\n" + "\n".join([*scores.answer(), *(f"! {warning}" for warning in scores.warnings.values())]))
    echo(f"page  {folder / 'index.html'}")
    return folder / "index.html"


def _without_truth(
    net: MultiHeadNet,
    heads: Sequence[Head],
    methods: Mapping[str, Method],
    sample: Sample,
    progress: Callable[[str], None],
) -> tuple[list[AttributionScore], list[str], list[str], dict[str, dict[str, Any]], dict[str, str]]:
    """Insertion and deletion, as `Scores` takes them."""
    scores: list[AttributionScore] = []
    drawn: dict[str, dict[str, Any]] = {}
    warnings: dict[str, str] = {}
    for head in heads:
        for name, method in {**methods, **WITHOUT_NETWORK}.items():
            progress(f"{head.name}: {method_title(name)}")
            warned: list[str] = []
            for kind, curves in insertion_deletion(net, head, method, sample.images, warnings=warned).items():
                area = torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)
                scores.append(AttributionScore(head.name, name, "none", kind, "all", *bootstrap_ci(area)))
                panel = kind if len(heads) == 1 else f"{head.name}: {kind}"
                drawn.setdefault(panel, {})[method_title(name)] = curves.mean(dim=0).numpy()
            if warned:
                warnings.setdefault(name, f"{method_title(name)}, {head.name}: {warned[0]}")
    return scores, [head.name for head in heads], list(methods), drawn, warnings


def _truth_figure(
    scores: Sequence[AttributionScore], heads: Sequence[str], methods: Sequence[str], metrics: Sequence[str]
) -> plots.Figure:
    panels: dict[tuple[str, str], dict[str, dict[str, tuple[float, float, float]]]] = {}
    for metric in metrics:
        for head in heads:
            rows: dict[str, dict[str, tuple[float, float, float]]] = {}
            for method in (*methods, CHANCE, EDGES, UPPER_BOUND):  # a random map is as good as chance
                rows[method_title(method)] = {
                    found.truth: (found.mean, found.low, found.high)
                    for found in scores
                    if (found.head, found.method, found.metric, found.predictions) == (head, method, metric, "all")
                }
            panels[metric, head] = rows
    return plots.intervals(panels)


def _tables(scores: Sequence[AttributionScore]) -> dict[str, Rows]:
    """{title: rows, the header first} for the console and the page."""
    tables = {}
    truths = dict.fromkeys(g.truth for g in scores if g.metric in METRICS and g.truth != "head contrast")
    for truth in sorted(truths):  # the counterfactual one before the line
        for predictions in ("all", "correct", "wrong"):
            kept = [g for g in scores if g.truth == truth and g.predictions == predictions]
            n = max((g.n for g in kept), default=0)
            if n and (predictions != "correct" or any(g.predictions == "wrong" and g.n for g in scores)):
                title = f"Truth: {truth}; {predictions} predictions"
                tables[title] = _pivot(kept, tuple(METRICS))
    random = [g for g in scores if g.truth == "randomised weights"]
    title = "Rank correlation with the maps of random weights, on the pixels where one of the two is not 0"
    tables[title] = _pivot(random, ("rank correlation",))
    heads = [g for g in scores if g.truth == "head contrast"]
    if heads:
        tables["Head contrast"] = _pivot(heads, ("auc",))
    return tables


def _pivot(scores: Sequence[AttributionScore], columns: tuple[str, ...]) -> Rows:
    """A row for each head and method, a column for each metric."""
    rows: Rows = [["head", "method", *columns, "n"]]
    heads = list(dict.fromkeys(g.head for g in scores))
    pairs = dict.fromkeys((g.head, g.method) for g in scores)
    for head, method in sorted(pairs, key=lambda pair: heads.index(pair[0])):
        own = {g.metric: g for g in scores if (g.head, g.method) == (head, method)}
        cells = [
            f"{own[name].mean:.3f} [{own[name].low:.3f}, {own[name].high:.3f}]" if name in own else ""
            for name in columns
        ]
        n = max(g.n for g in own.values())
        if n:
            rows.append([head, method_title(method), *cells, f"{n:,}"])
    return rows
