"""Layer tables and architecture diagrams, against sizes and parameters worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet121, resnet18

from cnnlab import plots
from cnnlab.interpret.layer_table import layer_table, layer_text
from cnnlab.run import RunFolder


class Joined(nn.Module):
    """Two branches, joined by a sum and by `torch.cat`; one ReLU that runs twice; parameters outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (1, 3), padding=(0, 1), bias=False)
        self.relu, self.norm, self.out = nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(7))
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.relu(self.first(images - 0.5)), self.second(images)
        both = self.relu(first + second)
        return self.out(F.avg_pool2d(self.norm(torch.cat([both, second], dim=1)), 6).flatten(1)) * self.scale[0]


def test_layers_of_joined_branches() -> None:
    rows = layer_table(Joined(), (3, 6, 6))
    assert [(row.name, row.type, row.shape, row.parameters, row.connected_to) for row in rows] == [
        ("first", "Conv2d 3 × 3", (4, 6, 6), 3 * 4 * 9 + 4, ("image",)),
        ("relu", "ReLU", (4, 6, 6), 0, ("first",)),
        ("second", "Conv2d 1 × 3", (4, 6, 6), 3 * 4 * 3, ("image",)),
        ("relu (2)", "ReLU", (4, 6, 6), 0, ("relu", "second")),
        ("norm", "BatchNorm2d", (8, 6, 6), 4 * 8, ("relu (2)", "second")),
        ("out", "Linear", (5,), 8 * 5 + 5, ("norm",)),
    ]
    text = layer_text(Joined(), rows).splitlines()
    assert text[0].split() == ["layer", "type", "connected", "to", "output", "shape", "parameters"]
    assert text[-3].split() == ["not", "in", "these", "layers", "13"]  # of `scale` and `unused`
    assert text[-1] == "238 parameters: 222 trainable, 16 not"


def test_the_table_of_a_run(lines_run: Path) -> None:
    run = RunFolder(lines_run)
    rows = {row.name: row for row in layer_table(run.net, (3, 28, 28))}
    assert sum(row.parameters for row in rows.values()) == 98_927  # as in Report B
    assert rows["stem.conv"].parameters == 3 * 32 * 9 + 32
    assert rows["angle.out"].parameters == 1024 * 12 + 12
    assert rows["colour.conv"].connected_to == ("stem.dropout",)
    assert (lines_run / "model.txt").read_text() == layer_text(run.net, list(rows.values()))


def test_the_table_leaves_the_network_as_it_was() -> None:
    net = resnet18().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layer_table(net, (3, 64, 64))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def _counts(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    figure = plots.architecture(layer_table(net, shape), "network")
    patches = figure.axes[0].patches
    return sum(isinstance(p, FancyBboxPatch) for p in patches), sum(isinstance(p, FancyArrowPatch) for p in patches)


def test_boxes_and_arrows(lines_run: Path) -> None:
    # The image, the stem, two boxes a head and three for the angle; each but the image has one arrow to it.
    assert _counts(RunFolder(lines_run).net, (3, 28, 28)) == (11, 10)
    # image, first, second, relu (2) with two, norm with two, out
    assert _counts(Joined(), (3, 6, 6)) == (6, 7)


class SharedReLU(nn.Module):
    """A deep network with one ReLU: its blocks feed each other."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.relu = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(45)), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        for conv in self.convs:
            images = self.relu(conv(images))
        return images.mean(dim=(2, 3))


def test_blocks_that_feed_each_other() -> None:
    assert _counts(SharedReLU(), (3, 4, 4)) == (3, 2)  # image, convs, relu


@pytest.mark.slow
def test_a_deep_network_is_drawn_by_blocks() -> None:
    boxes, arrows = _counts(densenet121(), (3, 64, 64))
    assert boxes == 14
    assert arrows == 17  # each block hands its input on: four arrows pass it
