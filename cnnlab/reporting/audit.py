"""The page of an audit: which heatmaps can be trusted, and the maps behind each verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cnnlab import plots
from cnnlab.data.datamodule import sample_indices
from cnnlab.interpret.attribution import Method, bind_baselines, displayable
from cnnlab.interpret.audit import AVOID, CARE, CHECKS, FEWEST, USE, AuditResult, Example, audit
from cnnlab.interpret.method_names import method_title
from cnnlab.interpret.own_network import own_network
from cnnlab.interpret.registry import build_methods
from cnnlab.reporting.html import render
from cnnlab.run import RunFolder, find_run
from cnnlab.utils import console
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, user_errors
from cnnlab.utils.hardware import disable_malloc_trim
from cnnlab.utils.io import check_is_folder, new_folder, to_csv, write_atomically, write_json
from cnnlab.utils.versions import versions

Progress = Callable[[str], None]
IMAGES = 100  # that are audited if no number is named


def audit_run_folder(
    run: RunFolder, methods: Mapping[str, Method], images: int | None = None, progress: Progress = lambda _: None
) -> AuditResult:
    """Audit `methods` on `images` random test images of a run; None: 100, or all of a smaller test split. Where it has
    fewer than an audit needs, images of the other splits are added."""
    split, masks = run.test_split, dict[str, Tensor]()
    rows = sample_indices(len(split), min(IMAGES, len(split)) if images is None else images)
    inputs = split.inputs(rows)
    for head in run.heads:
        truths = split.truths(rows, head)
        if truths:
            masks[head.name] = truths.get("counterfactual", next(iter(truths.values())))
    if len(inputs) < FEWEST and images is None:
        others = [run.datamodule("fit").splits[name] for name in ("val", "train")]
        more = [other.inputs(torch.arange(min(IMAGES, len(other)))) for other in others]
        inputs, masks = torch.cat([inputs, *more])[:IMAGES], {}
    with user_errors("method"):
        bound = {name: bind_baselines(method, lambda: run.baseline_images) for name, method in methods.items()}
        heads = [head.name for head in run.heads]
        return audit(run.net, inputs, bound, heads, masks, None, progress)


def audit_run(cfg: DictConfig) -> Path:
    """Run an audit with `conf/audit.yaml`; return the page's path. Raises `UserError` before anything is written."""
    disable_malloc_trim()
    check_is_folder(cfg.out)
    methods = build_methods(cfg.method)
    network = own_network(cfg)
    if network is not None:
        source, title, parent = str(cfg.images), network.title, Path("outputs/audit")
        with user_errors("method"), console.working() as progress:
            bound = {name: bind_baselines(method, lambda: network.baseline_images) for name, method in methods.items()}
            result = audit(network.net, network.inputs.images, bound, progress=progress)
    elif not isinstance(cfg.images, int | None):
        raise UserError(f"images={cfg.images} is no number; a folder of images goes with net=<function>")
    else:
        run = RunFolder(find_run(cfg.run))
        title, parent = run.title, run.path / "audit"
        with console.working() as progress:
            result = audit_run_folder(run, methods, cfg.images, progress)
        kind = "test images" if result.images <= len(run.test_split) else "images of all splits"
        source = f"{result.images} {kind} of {run.path}"
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else parent)
    write_atomically(folder / "checks.csv", to_csv(result.rows()))
    plots.save(result.plot(), folder / "checks.png")
    verdicts = sorted(result.verdicts.items(), key=lambda item: (USE, CARE, AVOID).index(item[1][0]))
    for number, (name, _) in enumerate(verdicts, start=1):
        examples = {head: example for (method, head), example in result.examples.items() if method == name}
        if examples:
            plots.save(_maps_figure(examples), folder / f"maps_{number}.png")
    known = {"title": title, "settings": OmegaConf.to_container(cfg), "versions": versions()}
    manifest = {**known, **result.metadata(), "images": source}
    shown = [check for check in CHECKS if any(row.check == check for row in result.checks)]
    content: dict[str, Any] = {
        "manifest": manifest,
        "result": result,
        "verdicts": verdicts,
        "folder": folder,
        "shown": shown,
    }
    html = render("audit.html", **content, title_of=method_title)
    write_atomically(folder / "index.html", html)
    write_json(folder / "manifest.json", manifest)
    echo(str(result))
    echo(f"page  {folder / 'index.html'}")
    return folder / "index.html"


def _maps_figure(examples: Mapping[str, Example]) -> plots.Figure:
    """Draw a row per head: an image, its map, that of random weights; the image with a marker, and its map."""
    tiles, captions = [], []
    marker = all(example.marked is not None for example in examples.values())
    for head, example in examples.items():
        pictures = [(example.image, "the image"), (example.heatmap, "its map"), (example.untrained, "random weights")]
        if marker and example.marked is not None and example.marked_heatmap is not None:
            pictures += [(example.marked, "with a marker"), (example.marked_heatmap, "its map")]
        for values, caption in pictures:
            tiles.append(_picture(values) if values.ndim == 3 else plots.heat(values.numpy()))
            captions.append(f"{head}: {caption}" if head else caption)
    columns = len(tiles) // len(examples)
    return plots.images(np.stack(tiles), captions, "", columns=columns, picture_width=1.5)


def _picture(image: Tensor) -> plots.Array:
    """Return uint8 (3, H, W)."""
    shown = (displayable(image[None])[0][0] * 255).round().to(torch.uint8).numpy()
    return np.broadcast_to(shown if len(shown) == 3 else shown[:1], (3, *shown.shape[1:]))
