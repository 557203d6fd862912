"""The page of an audit: the scores of a run's heatmaps on a sample of its test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cnnlab import plots
from cnnlab.data.datamodule import sample_indices
from cnnlab.interpret.attribution import Method, bind_baselines
from cnnlab.interpret.audit import AuditResult, Sample, audit
from cnnlab.interpret.metrics import METRICS
from cnnlab.interpret.registry import build_methods
from cnnlab.reporting.html import render
from cnnlab.run import RunFolder, find_run
from cnnlab.utils.console import as_table, echo
from cnnlab.utils.errors import user_errors
from cnnlab.utils.hardware import disable_malloc_trim
from cnnlab.utils.io import new_folder, to_csv, write_atomically, write_json
from cnnlab.utils.versions import versions

NO_TRUTH = "The right pixels of this data set are not known: heatmaps are scored by insertion and deletion curves."


def audit_run_folder(
    run: RunFolder, methods: Mapping[str, Method], images: int = 1000, progress: Callable[[str], None] = lambda _: None
) -> AuditResult:
    """Score the heatmaps of `methods` on `images` random test images of a run."""
    split, heads = run.test_split, run.heads
    rows = sample_indices(len(split), images)
    truths = {head.name: split.truths(rows, head) for head in heads}
    sample = Sample(split.inputs(rows), split.targets(rows), truths)
    with user_errors("method"):
        bound = {name: bind_baselines(method, lambda: run.baseline_images) for name, method in methods.items()}
        return audit(run.net, heads, bound, sample, progress)


def audit_run(cfg: DictConfig) -> Path:
    """Run an audit with `conf/audit.yaml`; return the page's path. Raises `UserError` before anything is written."""
    disable_malloc_trim()
    run = RunFolder(find_run(cfg.run))
    methods = build_methods(cfg.method)
    with Console().status("") as status:
        result = audit_run_folder(run, methods, cfg.images, status.update)
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "audit")
    write_atomically(folder / "scores.csv", to_csv(result.rows()))
    plots.save(result.plot(), folder / "scores.png")
    if not result.curves:
        plots.save(result.plot(tuple(METRICS)), folder / "scores_all.png")
    manifest = {
        "run": str(run.path),
        "title": run.title,
        "images": cfg.images,
        "test_images": len(run.test_split),
        "settings": OmegaConf.to_container(cfg),
        "warnings": result.warnings,
        "versions": versions(),
    }
    html = render("audit.html", manifest=manifest, result=result, folder=folder, no_truth=NO_TRUTH)
    write_atomically(folder / "index.html", html)
    write_json(folder / "manifest.json", manifest)
    echo(NO_TRUTH if result.curves else as_table(result.verdicts(), left=2))
    echo(f"\n{result}")
    for warning in result.warnings.values():
        echo(f"! {warning}")
    echo(f"page  {folder / 'index.html'}")
    return folder / "index.html"
