"""The grades of one run's heatmaps: computed on a sample of the test split and written to a new folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cnnlab import UserError, figures
from cnnlab.cli import words
from cnnlab.data.lines import LineSplit
from cnnlab.data.splits import LabData
from cnnlab.explain.grading import BASELINES, Grade, Sample, grade, insertion_deletion, sample_of
from cnnlab.explain.heatmaps import METHODS
from cnnlab.explain.probe import options
from cnnlab.explain.scores import METRICS, interval
from cnnlab.files import new_folder, to_csv, write_whole
from cnnlab.hardware import keep_memory
from cnnlab.nets import Net
from cnnlab.page import render
from cnnlab.runs import Run, newest, versions

Rows = list[list[str]]

NO_TRUTH = "this data set has no true pixels: heatmaps are graded by insertion and deletion curves instead"


def score_run(cfg: DictConfig) -> Path:
    """Grade what `cfg` (conf/score.yaml) asks for; returns the page's path.

    Raises `UserError` for what the user can mend, before anything is written.
    """
    console = Console()
    keep_memory()
    run = Run(str(cfg.run)) if cfg.run else newest(Path("outputs"))
    methods = words(cfg.methods)
    for method in methods:
        if method not in METHODS:
            raise UserError(f"there is no method '{method}'{options(method, METHODS)}")
    data = run.data("test")
    split = data.splits["test"]
    sample = sample_of(split, cfg.images)
    net = run.net(data)
    with console.status("") as status:
        if isinstance(split, LineSplit):
            grades = grade(net, data.heads, methods, sample, split.truths, status.update)
            tables, figure = _tables(grades), _truth_figure(grades, data, methods)
        else:
            console.print(NO_TRUTH, highlight=False)
            grades, figure = _without_truth(net, data, methods, sample, status.update)
            tables = {"Mean probability over the curve": _pivot(grades, ("insertion", "deletion"))}
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "score")
    write_whole(folder / "scores.csv", to_csv([grade.row() for grade in grades]))
    figures.save(figure, folder / "scores.png")
    _write_page(folder, run, cfg, tables, {"images": cfg.images, "test_images": len(split)})
    _print(console, *next(iter(tables.items())))
    console.print(f"page  {folder / 'index.html'}", highlight=False, soft_wrap=True)
    return folder / "index.html"


def _write_page(
    folder: Path, run: Run, cfg: DictConfig, tables: dict[str, Rows], counts: dict[str, int]
) -> None:
    """`index.html`, and `manifest.json` last."""
    settings = OmegaConf.to_container(cfg)
    names = {"run": str(run.path), "experiment": run.config.experiment}
    manifest = {**names, **counts, "settings": settings, "versions": versions()}
    html = render("score.html", manifest=manifest, tables=tables, picture=folder / "scores.png")
    write_whole(folder / "index.html", html)
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _without_truth(
    net: Net, data: LabData, methods: list[str], sample: Sample, tell: Callable[[str], None]
) -> tuple[list[Grade], figures.Figure]:
    """Insertion and deletion: the mean probability over the curve, and the curves as a picture."""
    grades: list[Grade] = []
    drawn: dict[str, dict[str, Any]] = {"insertion": {}, "deletion": {}}
    for head in data.heads:
        for method in methods:
            tell(f"{head.name}: {method.replace('_', ' ')}")
            for kind, curves in insertion_deletion(net, head, method, sample).items():
                area = torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)
                grades.append(Grade(head.name, method, "none", kind, "all", *interval(area)))
                drawn[kind][method.replace("_", " ")] = curves.mean(dim=0).numpy()
    return grades, figures.shares(drawn, "share of pixels", "probability of the predicted class")


def _truth_figure(grades: list[Grade], data: LabData, methods: list[str]) -> figures.Figure:
    panels: dict[tuple[str, str], dict[str, dict[str, tuple[float, float, float]]]] = {}
    for metric in METRICS:
        for head in data.heads:
            rows: dict[str, dict[str, tuple[float, float, float]]] = {}
            for method in (*methods, *BASELINES):
                rows[method.replace("_", " ")] = {
                    found.truth: (found.mean, found.low, found.high)
                    for found in grades
                    if (found.head, found.method, found.metric, found.predictions)
                    == (head.name, method, metric, "all")
                }
            panels[metric, head.name] = rows
    return figures.intervals(panels)


def _tables(grades: list[Grade]) -> dict[str, Rows]:
    """{title: rows, the header first} for the console and the page."""
    tables = {}
    for truth in ("counterfactual", "line"):
        for predictions in ("all", "correct", "wrong"):
            kept = [g for g in grades if g.truth == truth and g.predictions == predictions]
            n = max((g.n for g in kept), default=0)
            if n and (predictions != "correct" or any(g.predictions == "wrong" and g.n for g in grades)):
                title = f"Truth: {truth}; {predictions} predictions"
                tables[title] = _pivot(kept, tuple(METRICS))
    random = [g for g in grades if g.truth == "randomised weights"]
    tables["Rank correlation with the maps of random weights"] = _pivot(random, ("rank correlation",))
    heads = [g for g in grades if g.truth == "head contrast"]
    if heads:
        tables["Head contrast"] = _pivot(heads, ("auc",))
    return tables


def _pivot(grades: list[Grade], columns: tuple[str, ...]) -> Rows:
    """A row for each head and method, a column for each metric."""
    rows: Rows = [["head", "method", *columns, "n"]]
    heads = list(dict.fromkeys(g.head for g in grades))
    pairs = dict.fromkeys((g.head, g.method) for g in grades)
    for head, method in sorted(pairs, key=lambda pair: heads.index(pair[0])):
        own = {g.metric: g for g in grades if (g.head, g.method) == (head, method)}
        cells = [
            f"{own[name].mean:.3f} [{own[name].low:.3f}, {own[name].high:.3f}]" if name in own else ""
            for name in columns
        ]
        n = max(g.n for g in own.values())
        if n:
            rows.append([head, method.replace("_", " "), *cells, f"{n:,}"])
    return rows


def _print(console: Console, title: str, rows: Rows) -> None:
    """A table without its intervals, which stand on the page."""
    table = Table(*rows[0], title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*(cell.partition(" [")[0] for cell in row))
    console.print(table)
