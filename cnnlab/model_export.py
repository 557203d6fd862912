"""A trained network for use without cnnlab: ONNX, or a program of torch.export, checked before it is written."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cnnlab import __version__
from cnnlab.errors import UserError, did_you_mean
from cnnlab.explain.network import frozen_copy
from cnnlab.io import new_folder, write_atomically
from cnnlab.log import echo
from cnnlab.models.heads import Head
from cnnlab.runs import Run, open_run
from cnnlab.task import Task

CHECKED = 256  # test images on which an exported network must say what the network says
TOLERANCE = 1e-4  # of a probability

GROUNDS = {"line": "something coloured on black", "digit": "one light digit on black, as MNIST has it", "image": "any"}

Answers = Callable[[Tensor], dict[str, Tensor]]


class _InOrder(nn.Module):
    """The probabilities of all heads as a tuple. Weights are numbered: torch's exporter writes their names as Python
    code, in which a head that is called `class` would be a syntax error."""

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__()
        state = probabilities.state_dict()
        self.names, self.hidden = list(state), (probabilities,)
        self.values = nn.ParameterList([nn.Parameter(value, requires_grad=False) for value in state.values()])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, self.values, strict=True))
        return tuple(torch.func.functional_call(self.hidden[0], state, (images,)).values())


class Probabilities(nn.Module):
    """{head: probabilities float32 (B, classes)} of images float32 (B, C, H, W) in [0, 1]."""

    def __init__(self, net: nn.Module, heads: Sequence[Head]) -> None:
        super().__init__()
        self.net, self.heads = frozen_copy(net), tuple(heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {head.name: head.probabilities(logits[head.name]) for head in self.heads}


def metadata(task: Task, title: str) -> dict[str, str]:
    """What goes into the file beside the network: {"heads": {head: class names} as JSON, "input": a sentence, ...}."""
    shape = ", ".join(map(str, task.image_shape))
    colours = {1: "grey", 3: "RGB"}.get(task.image_shape[0], f"{task.image_shape[0]} channels")
    return {
        "title": title,
        "heads": json.dumps({head.name: head.classes for head in task.heads}, ensure_ascii=False),
        "input": f"images: float32 (batch, {shape}) in [0, 1], {colours}; {GROUNDS[task.expects]}",
        "output": "a head each: probabilities, float32 (batch, classes)",
        "cnnlab": __version__,
    }


def to_torch_export(net: nn.Module, task: Task, title: str) -> bytes:
    """The file of a `torch.export` program: `images` of any number to {head: probabilities}."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_program(Probabilities(net, task.heads), task), file, extra_files=metadata(task, title))
    return file.getvalue()


def to_onnx(net: nn.Module, task: Task, title: str) -> bytes:
    """An ONNX file: `images` of any number to one output a head, its probabilities. Raises `UserError` where
    the packages for it are not installed."""
    _needs("onnx", "onnxscript", "onnxruntime")
    with _quiet():
        program = _program(_InOrder(Probabilities(net, task.heads)), task)
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    _name_outputs(made.model.graph, [head.name for head in task.heads])
    made.model.metadata_props.update(metadata(task, title))
    return bytes(made.model_proto.SerializeToString())


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Name the outputs of an ONNX graph; another value that has one of the names already gets a new one."""
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.name in names:
            value.name = f"{value.name}.inner"
    for name, output in zip(names, graph.outputs, strict=True):
        output.name = name


def _program(module: nn.Module, task: Task) -> torch.export.ExportedProgram:
    images = torch.zeros(2, *task.image_shape)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(module.eval(), (images,), dynamic_shapes=batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the exporters do not warn of their own code."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)


def _needs(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'cnnlab[export]'")


def open_torch_export(content: bytes) -> Answers:
    """What the program in a file says."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda images: dict(module(images))


def open_onnx(content: bytes) -> Answers:
    """What the network in an ONNX file says, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def answers(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {session.get_inputs()[0].name: images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return answers


def largest_difference(net: nn.Module, task: Task, answers: Answers, images: Tensor) -> float:
    """By how much the probabilities of an exported network differ from the network's at most, over all heads; NaN
    where one is no number."""
    with torch.no_grad():
        wanted, found = Probabilities(net, task.heads)(images), answers(images)
    if any(found[name].shape != values.shape for name, values in wanted.items()):
        return float("inf")
    return torch.stack([(found[name] - values).abs().max() for name, values in wanted.items()]).max().item()


FORMATS = {
    "onnx": (to_onnx, open_onnx, "model.onnx"),
    "torch_export": (to_torch_export, open_torch_export, "model.pt2"),
}

LINES = {
    "onnx": """import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({file!r})
heads = json.loads(session.get_modelmeta().custom_metadata_map["heads"])
images = np.zeros((1, {shape}), np.float32)  # yours, in [0, 1]
answers = session.run(list(heads), {{session.get_inputs()[0].name: images}})
print({{head: heads[head][p[0].argmax()] for head, p in zip(heads, answers)}})""",
    "torch_export": """import json, torch
files = {{"heads": ""}}
net = torch.export.load({file!r}, extra_files=files).module()
heads, answers = json.loads(files["heads"]), net(torch.zeros(1, {shape}))  # your images, in [0, 1]
print({{head: heads[head][p[0].argmax()] for head, p in answers.items()}})""",
}


def export_run(cfg: DictConfig) -> Path:
    """Export what `cfg` (conf/export.yaml) asks for, check it against the network on 256 test images, and say how it
    is used; returns its path. Raises `UserError`, before anything is written, where they differ."""
    run: Run = open_run(cfg.run)
    if cfg.format not in FORMATS:
        raise UserError(f"there is no format '{cfg.format}'{did_you_mean(str(cfg.format), FORMATS)}")
    convert, opened, name = FORMATS[cfg.format]
    content = convert(run.net, run.task, run.title)
    images = run.test_split.inputs(torch.arange(min(CHECKED, len(run.test_split))))
    difference = largest_difference(run.net, run.task, opened(content), images)
    if not difference <= TOLERANCE:
        raise UserError(f"the exported network is not the same: its probabilities differ by {difference:.2g}")
    path = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "export") / name
    write_atomically(path, content)
    shape = ", ".join(map(str, run.task.image_shape))
    echo(f"the same to {difference:.1e} on {len(images)} test images\nfile  {path}\n\nTo use it elsewhere:\n")
    echo(LINES[cfg.format].format(file=str(path), shape=shape))
    return path
