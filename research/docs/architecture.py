"""Draws the architectures of docs/reports.md: python research/docs/architecture.py"""

from __future__ import annotations

from pathlib import Path

from cnnlab import plots
from cnnlab.data.lines import LineDataModule
from cnnlab.interpret.layer_table import layer_table
from cnnlab.training.build import build_net
from cnnlab.utils.cli import compose_config

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"

if __name__ == "__main__":
    for experiment in ("multihead_figure5", "multihead"):
        with compose_config("train", [f"experiment={experiment}"]) as config:
            layers = layer_table(build_net(config, (3, 28, 28), LineDataModule().heads), (3, 28, 28))
        title = f"{experiment}: {sum(layer.parameters for layer in layers):,} parameters"
        file = GALLERY / f"architecture_{experiment.removeprefix('multihead_')}.png"
        plots.save(plots.architecture(layers, title), file)
