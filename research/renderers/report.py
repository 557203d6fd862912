"""How a run's network reads lines that are not drawn as those it was trained on, beside a reader without learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.api import Run
from cnnlab.data.rendering import ATTRIBUTES, IMAGE_SIZE
from cnnlab.interpret.network import frozen_copy
from cnnlab.models.heads import Head
from cnnlab.plots.result import Result
from cnnlab.reporting import html
from cnnlab.reporting.html import join_words
from cnnlab.run import find_run
from cnnlab.utils.console import as_table, echo, percent
from cnnlab.utils.errors import UserError
from cnnlab.utils.hardware import disable_malloc_trim
from cnnlab.utils.io import new_folder, to_csv, write_atomically, write_json
from cnnlab.utils.versions import versions
from research import TEMPLATES
from research.renderers import figures
from research.renderers.external import RENDERERS, available
from research.renderers.line_bench import LineBench, moments_baseline

BATCH = 500
POINT = 0.01  # so much worse than the other reader is not worse
MOST = 200  # lines of a kind: each variation of them is held at once
SHOWN = ((0, 0, 2), (0, 1, 3), (1, 0, 10), (1, 1, 8))  # length, width and angle of the lines that are drawn


@dataclass(frozen=True)
class Reading:
    """How many of the lines of one variation are read right, shares in [0, 1]: `heads` {attribute: share} by the
    network, `joint` where all are right, and `moments` by the reader without learning; `examples` are images float32
    (4, 3, 28, 28)."""

    group: str
    name: str
    heads: dict[str, float]
    joint: float
    moments: float
    examples: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Robustness(Result):
    """How a network reads `count` lines in every variation of the bench."""

    readings: Sequence[Reading]
    count: int

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"group": found.group, "lines": found.name, **found.heads, "joint": found.joint, "moments": found.moments}
            for found in self.readings
        ]

    def table(self) -> list[list[str]]:
        """Rows of cells, the header first, to be read."""
        head = ["lines", *self.readings[0].heads, "all right", "moments"]
        return [head] + [
            [found.name, *(percent(share) for share in (*found.heads.values(), found.joint, found.moments))]
            for found in self.readings
        ]

    def answer(self) -> list[str]:
        """What was found, a sentence for each group of variations in which the network reads fewer lines than the other
        reader, and one for those in which it does not."""
        groups: dict[str, list[Reading]] = {}
        for found in self.readings:
            groups.setdefault(found.group, []).append(found)
        well, worse = [], []
        for group, members in groups.items():
            short = [found for found in members if found.joint < found.moments - POINT]
            if not short:
                well.append(group)
                continue
            most = max(short, key=lambda found: found.moments - found.joint)
            shares = f"{percent(most.joint)} of the lines are read right, {percent(most.moments)} by moments"
            ways = f"{len(short)} of {len(members)} ways" if len(members) > 1 else "the one way"
            worse.append(f"Lines {group}: worse in {ways}, most for “{most.name}”, where {shares}.")
        return [
            *worse,
            *([f"As well as a reader without learning, to within a point: lines {join_words(well)}."] if well else []),
        ]

    def plot(self) -> plots.Figure:
        """Every variation: four lines in it, and how many are read right by the network and by the other reader."""
        groups: dict[str, dict[str, tuple[plots.Array, float, float]]] = {}
        for found in self.readings:
            pixels = (found.examples * 255).round().to(torch.uint8).numpy()
            groups.setdefault(found.group, {})[found.name] = (pixels, found.joint, found.moments)
        return figures.readings(groups, ("the network", "moments, without learning"))

    def metadata(self) -> dict[str, Any]:
        return {"count": self.count}

    def __repr__(self) -> str:
        return "\n".join([as_table(self.table()), *self.answer()])


def robustness(
    run: Run, per_kind: int = 20, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> Robustness:
    """How a run's network reads the lines of the bench, `per_kind` of each kind in the colours that it knows. Raises
    `UserError` where it does not answer about lines."""
    parts = {part.name: part for head in run.heads for part in (head.parts or (head,))}
    known = {name: parts[name] for name in ATTRIBUTES if name in parts}
    ours = run.image_shape == (3, IMAGE_SIZE, IMAGE_SIZE) and all(
        set(part.classes) <= set(ATTRIBUTES[name]) for name, part in known.items()
    )
    if run.input_type != "line" or "colour" not in known or not ours:
        raise UserError(f"{run.path} does not answer about lines and their colour: there is no bench for it")
    if not 1 <= per_kind <= MOST:
        raise UserError(f"per_kind={per_kind} is not in 1..{MOST}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not in 0..{2**32 - 1}")
    bench = LineBench.draw(per_kind, known["colour"].classes, seed)
    numbers = {name: torch.tensor([ATTRIBUTES[name].index(c) for c in part.classes]) for name, part in known.items()}
    net, readings = frozen_copy(run.net), []
    lines = torch.stack([bench.truth[name] for name in ("length", "width", "angle")], dim=1)
    examples = torch.stack([(lines == torch.tensor(wanted)).all(dim=1).int().argmax() for wanted in SHOWN])
    for variation in bench.variations():
        progress(f"{variation.group}: {variation.name}")
        said, moments = _answers(net, run.heads, variation.images), moments_baseline(variation.images)
        right = {name: numbers[name][said[name]] == bench.truth[name] for name in known}
        joint, ceiling = (
            torch.stack([*each]).all(dim=0).double().mean().item()
            for each in (right.values(), (moments[name] == bench.truth[name] for name in known))
        )
        shares = {name: hits.double().mean().item() for name, hits in right.items()}
        readings.append(Reading(variation.group, variation.name, shares, joint, ceiling, variation.images[examples]))
    return Robustness(readings, len(bench.class_ids))


def _answers(net: nn.Module, heads: Sequence[Head], images: Tensor) -> dict[str, Tensor]:
    """What a network says, {attribute: class int64 (B,)}; a head of parts answers for each of them."""
    with torch.no_grad():
        batches = [net(batch) for batch in images.split(BATCH)]
    said: dict[str, Tensor] = {}
    for head in heads:
        classes = torch.cat([head.predict(batch[head.name]) for batch in batches])
        if head.parts:
            parts = torch.unravel_index(classes, tuple(len(part.classes) for part in head.parts))
            said |= {part.name: values for part, values in zip(head.parts, parts, strict=True)}
        else:
            said[head.name] = classes
    return said


def robustness_run(cfg: DictConfig) -> Path:
    """Run the benchmark with `conf/renderers.yaml`; return the page's path.

    Raises `UserError` before anything is written.
    """
    disable_malloc_trim()
    run = Run(find_run(cfg.run))
    with Console().status("") as status:
        found = robustness(run, cfg.per_kind, cfg.seed, status.update)
    folder = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "robustness")
    write_atomically(folder / "robustness.csv", to_csv(found.rows()))
    plots.save(found.plot(), folder / "robustness.png")
    left_out = [name for name in RENDERERS if name not in available()]
    names = {"run": str(run.path), "title": run.title, "left_out": left_out}
    manifest = {**names, "count": found.count, "settings": OmegaConf.to_container(cfg), "versions": versions()}
    page = html.render("renderers.html", TEMPLATES, manifest=manifest, found=found, picture=folder / "robustness.png")
    write_atomically(folder / "index.html", page)
    write_json(folder / "manifest.json", manifest)
    echo(str(found))
    if left_out:
        echo(f"! left out: {', '.join(left_out)}; pip install opencv-python-headless")
    echo(f"page  {folder / 'index.html'}")
    return folder / "index.html"
