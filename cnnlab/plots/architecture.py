"""The architecture of a network as boxes and arrows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from cnnlab.plots.style import BLUE

MOST_BOXES = 40  # larger networks are drawn by blocks
LINE, WIDTH, GAP, ASIDE = 0.17, 2.3, 0.35, 0.25  # inches: a line of text, a box, below a box, beside it


@dataclass(frozen=True)
class LayerRow:
    """A layer that ran: its name ("relu (2)" for a second run), type with kernel size, output shape without the batch,
    () if it is no tensor, parameters as Keras counts them, and the layers that feed it."""

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    connected_to: tuple[str, ...]

    @property
    def size(self) -> str:
        return " × ".join(map(str, self.shape)) or "–"


def architecture(layers: Sequence[LayerRow], title: str) -> Figure:
    """Draw layers in running order from top to bottom. A box holds a convolution or a dense layer and what follows it
    in a chain. A network of more than MOST_BOXES boxes is drawn by blocks: the first parts of the layers' names."""
    home, parts = _boxes(layers), 4
    while len(set(home.values())) > MOST_BOXES and parts > 1:
        parts -= 1
        home = {layer.name: ".".join(re.sub(r" \(\d+\)$", "", layer.name).split(".")[:parts]) for layer in layers}
    lines: dict[str, list[str]] = {"image": ["image"]}
    sources: dict[str, set[str]] = {"image": set()}
    for layer in layers:
        box = home[layer.name]
        lines.setdefault(box, [box]).append(f"{layer.type}   {layer.size}")
        before = {home.get(source, source) for source in layer.connected_to} - {box}
        sources.setdefault(box, set()).update(before & lines.keys())
    if parts < 4:  # by blocks
        for box in lines.keys() - {"image"}:
            inside = [layer for layer in layers if home[layer.name] == box]
            lines[box] = [box, f"{sum(layer.parameters for layer in inside):,} parameters"]
    rank: dict[str, int] = {}
    for box, above in sources.items():
        rank[box] = 1 + max((rank[source] for source in above if source in rank), default=-1)
    # Blocks may feed each other, as by a shared ReLU: arrows go down.
    sources = {box: {source for source in above if rank[source] < rank[box]} for box, above in sources.items()}
    left = _columns(sources, rank)
    tall = {box: len(texts) * LINE + 0.12 for box, texts in lines.items()}
    top, y = dict[str, float](), 0.5
    for row in range(1 + max(rank.values())):
        boxes = [box for box in rank if rank[box] == row]
        top |= dict.fromkeys(boxes, y)
        y += max(tall[box] for box in boxes) + GAP
    width = max(max(left.values()) + WIDTH + 3 * ASIDE, 0.1 * len(title))
    figure = Figure(figsize=(width, y))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(y, 0))
    axes.text(0.1, 0.22, title, fontsize=11, va="center")
    for box, texts in lines.items():
        frame = FancyBboxPatch((left[box], top[box]), WIDTH, tall[box], "round,pad=0,rounding_size=0.06")
        frame.set(facecolor="#eef3f7", edgecolor=BLUE)
        axes.add_patch(frame)
        middle = left[box] + WIDTH / 2, top[box] + tall[box] / 2
        axes.text(*middle, "\n".join(texts), ha="center", va="center", fontsize=7.5, linespacing=1.35)
        for source in sources[box]:
            aside = rank[box] - rank[source] > 1 and left[box] == left[source]  # around the boxes between
            end = (WIDTH, tall[box] / 2) if aside else (WIDTH / 2, 0.0)
            start = (WIDTH, tall[source] / 2) if aside else (WIDTH / 2, tall[source])
            points = (left[source] + start[0], top[source] + start[1]), (left[box] + end[0], top[box] + end[1])
            bend = f"arc3,rad={-0.5 * aside}"
            axes.add_patch(
                FancyArrowPatch(*points, arrowstyle="-|>", mutation_scale=8, color="#555555", connectionstyle=bend)
            )
    return figure


def _boxes(layers: Sequence[LayerRow]) -> dict[str, str]:
    """Return {layer: the first layer of its box}."""
    fed = [source for layer in layers for source in layer.connected_to]
    home: dict[str, str] = {}
    for layer in layers:
        only = layer.connected_to[0] if len(layer.connected_to) == 1 else ""
        joins = only in home and fed.count(only) == 1 and not layer.type.startswith(("Conv", "Linear"))
        home[layer.name] = home[only] if joins else layer.name
    return home


def _columns(sources: dict[str, set[str]], rank: dict[str, int]) -> dict[str, float]:
    """Return the left edge of each box in inches: below its sources, beside its neighbours."""
    left: dict[str, float] = {}
    for row in range(1 + max(rank.values())):
        wanted = {
            box: sum(left[source] for source in sources[box]) / max(1, len(sources[box]))
            for box in rank
            if rank[box] == row
        }
        placed: dict[str, float] = {}
        for box in sorted(wanted, key=lambda box: wanted[box]):
            placed[box] = max([wanted[box], *(x + WIDTH + ASIDE for x in placed.values())])
        shift = sum(wanted[box] - placed[box] for box in placed) / len(placed)
        left |= {box: x + shift for box, x in placed.items()}
    lowest = min(left.values()) - ASIDE
    return {box: x - lowest for box, x in left.items()}
