"""Exported networks say what the network says, and the lines that are printed load them without cnnlab."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from cnnlab.build import build_net
from cnnlab.cli import CONF
from cnnlab.model_export import FORMATS, TOLERANCE, largest_difference, metadata, open_onnx, to_onnx
from cnnlab.models.heads import Head
from cnnlab.models.layers import Flatten
from cnnlab.models.networks import MultiHeadNet
from cnnlab.runs import Run
from cnnlab.task import Task
from tests.conftest import DIGIT, HEADS, in_process

NETS = sorted(path.stem for path in (CONF / "net").glob("*.yaml"))


def _net(name: str, task: Task) -> nn.Module:
    """A network of the lab with random weights, which has seen some noise in training, so that it normalises."""
    torch.manual_seed(0)
    config = OmegaConf.create({"net": OmegaConf.load(CONF / "net" / f"{name}.yaml"), "bn_momentum": 0.5})
    net = build_net(config, task.image_shape, task.heads)
    net.train()(torch.rand(64, *task.image_shape))
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_network_of_the_lab(form: str, name: str) -> None:
    grey = name in ("blocks", "classifier1", "deep")
    task = Task((DIGIT,), (1, 28, 28), "digit") if grey else Task(HEADS, (3, 28, 28), "line")
    net = _net(name, task)
    convert, opened, _ = FORMATS[form]
    answers = opened(convert(net, task, name))
    for count in (1, 7):  # any number of images
        assert largest_difference(net, task, answers, torch.rand(count, *task.image_shape)) <= TOLERANCE
    assert list(answers(torch.rand(1, *task.image_shape))) == [head.name for head in task.heads]


def test_a_difference_is_found() -> None:
    task = Task((Head("side", ("left", "right")),), (1, 28, 28), "image")
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(784, 1)) for _ in range(2)]

    class Named(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"side": self.net(images)}

    content = FORMATS["torch_export"][0](Named(nets[0]), task, "t")
    answers = FORMATS["torch_export"][1](content)
    images = torch.rand(3, 1, 28, 28)
    assert largest_difference(Named(nets[0]), task, answers, images) == 0
    assert largest_difference(Named(nets[1]), task, answers, images) > TOLERANCE
    two = Task((*task.heads, Head("other", ("a", "b"))), (1, 28, 28), "image")

    def both(values: torch.Tensor) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        return lambda images: {"side": torch.full((3, 2), 0.5), "other": values}

    class Zeros(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"side": torch.zeros(len(images), 1), "other": torch.zeros(len(images), 1)}

    assert largest_difference(Zeros(), two, both(torch.full((3, 2), 0.5)), images) == 0
    for wrong in (torch.full((3, 2), torch.nan), torch.full((3, 1), 0.5)):  # also where it is not the first head
        assert not largest_difference(Zeros(), two, both(wrong), images) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_the_printed_lines_load_it_elsewhere(
    form: str, lines_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process("export", f"run={lines_run}", f"format={form}", f"out={tmp_path}/out")
    said = capsys.readouterr().out
    assert said.startswith("the same to ")
    lines = said.partition("elsewhere:\n")[2]
    assert len(lines.strip().splitlines()) == (6 if form == "onnx" else 5)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, cwd=tmp_path)
    blank = Run(lines_run).predict(torch.zeros(3, 28, 28))
    assert done.stdout.strip() == str({head.name: blank[head.name][0] for head in HEADS})


def test_the_file_says_what_it_is(lines_run: Path) -> None:
    found = metadata(Run(lines_run).task, "multihead on lines")
    assert json.loads(found["heads"])["length"] == ["short", "long"]
    assert found["input"] == "images: float32 (batch, 3, 28, 28) in [0, 1], RGB; something coloured on black"


def test_a_wrong_format_is_one_line(lines_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no format 'onxx'; did you mean 'onnx'"):
        in_process("export", f"run={lines_run}", "format=onxx", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names", [("linear", "images"), ("softmax", "cat"), ("net", "conv2d"), ("sigmoid", "b c"), ("class", "lambda")]
)
def test_a_head_may_be_called_as_a_node_of_the_graph_is(names: tuple[str, str]) -> None:
    heads = (Head(names[0], ("a", "b")), Head(names[1], ("a", "b", "c")))
    net = MultiHeadNet((1, 8, 8), heads, {"conv": nn.Conv2d(1, 2, 3), "flatten": Flatten()}).eval()
    task = Task(heads, (1, 8, 8), "image")
    answers = open_onnx(to_onnx(net, task, "t"))
    assert list(answers(torch.rand(2, 1, 8, 8))) == list(names)
    assert largest_difference(net, task, answers, torch.rand(5, 1, 8, 8)) < 1e-5
