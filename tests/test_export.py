"""Exported networks say what the network says, and the lines that are printed load them without cnnlab."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from cnnlab.api import Run
from cnnlab.models.heads import Head
from cnnlab.models.layers import Flatten
from cnnlab.models.networks import MultiHeadNet
from cnnlab.reporting.export import FORMATS, TOLERANCE, largest_difference, metadata, open_onnx, to_onnx
from cnnlab.training.build import build_net
from cnnlab.utils.cli import CONF
from tests.conftest import DIGIT, HEADS, in_process

NETS = sorted(path.stem for path in (CONF / "net").glob("*.yaml"))


def _run(net: Any, heads: Sequence[Head], image_shape: tuple[int, int, int], input_type: str = "image") -> Any:
    """What an export needs of a run."""
    return SimpleNamespace(net=net, heads=heads, image_shape=image_shape, input_type=input_type, title="t")


def _net(name: str, heads: Sequence[Head], image_shape: tuple[int, int, int]) -> nn.Module:
    """A network of the lab with random weights, which has seen some noise in training, so that it normalises."""
    torch.manual_seed(0)
    config = OmegaConf.create({"net": OmegaConf.load(CONF / "net" / f"{name}.yaml"), "bn_momentum": 0.5})
    net = build_net(config, image_shape, heads)
    net.train()(torch.rand(64, *image_shape))
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_network_of_the_lab(form: str, name: str) -> None:
    grey = name in ("blocks", "classifier1", "deep")
    heads, shape, kind = ((DIGIT,), (1, 28, 28), "digit") if grey else (HEADS, (3, 28, 28), "line")
    run = _run(_net(name, heads, shape), heads, shape, kind)
    convert, opened, _ = FORMATS[form]
    answers = opened(convert(run))
    for count in (1, 7):  # any number of images
        assert largest_difference(run, answers, torch.rand(count, *shape)) <= TOLERANCE
    assert list(answers(torch.rand(1, *shape))) == [head.name for head in heads]


def test_a_difference_is_found() -> None:
    heads, shape = (Head("side", ("left", "right")),), (1, 28, 28)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(784, 1)) for _ in range(2)]

    class Named(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"side": self.net(images)}

    content = FORMATS["torch_export"][0](_run(Named(nets[0]), heads, shape))
    answers = FORMATS["torch_export"][1](content)
    images = torch.rand(3, 1, 28, 28)
    assert largest_difference(_run(Named(nets[0]), heads, shape), answers, images) == 0
    assert largest_difference(_run(Named(nets[1]), heads, shape), answers, images) > TOLERANCE
    two = (*heads, Head("other", ("a", "b")))

    def both(values: torch.Tensor) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        return lambda images: {"side": torch.full((3, 2), 0.5), "other": values}

    class Zeros(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"side": torch.zeros(len(images), 1), "other": torch.zeros(len(images), 1)}

    assert largest_difference(_run(Zeros(), two, shape), both(torch.full((3, 2), 0.5)), images) == 0
    for wrong in (torch.full((3, 2), torch.nan), torch.full((3, 1), 0.5)):  # also where it is not the first head
        assert not largest_difference(_run(Zeros(), two, shape), both(wrong), images) <= TOLERANCE


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
    found = metadata(Run(lines_run))
    assert json.loads(found["heads"])["length"] == ["short", "long"]
    assert found["input"] == "images: float32 (batch, 3, 28, 28) in [0, 1], RGB; something coloured on black"


def test_a_wrong_format_is_one_line(lines_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no format 'onxx'; did you mean 'onnx'"):
        in_process("export", f"run={lines_run}", "format=onxx", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="PyTorch 2.6 cannot export as ONNX")
@pytest.mark.parametrize(
    "names", [("linear", "images"), ("softmax", "cat"), ("net", "conv2d"), ("sigmoid", "b c"), ("class", "lambda")]
)
def test_a_head_may_be_called_as_a_node_of_the_graph_is(names: tuple[str, str]) -> None:
    heads = (Head(names[0], ("a", "b")), Head(names[1], ("a", "b", "c")))
    net = MultiHeadNet((1, 8, 8), heads, {"conv": nn.Conv2d(1, 2, 3), "flatten": Flatten()}).eval()
    run = _run(net, heads, (1, 8, 8))
    answers = open_onnx(to_onnx(run))
    assert list(answers(torch.rand(2, 1, 8, 8))) == list(names)
    assert largest_difference(run, answers, torch.rand(5, 1, 8, 8)) < 1e-5
