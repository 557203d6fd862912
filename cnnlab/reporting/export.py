"""Export a trained network as ONNX or as a torch.export program, and check the file before it is written."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cnnlab import __version__
from cnnlab.interpret.network import frozen_copy
from cnnlab.models.heads import Head
from cnnlab.run import RunFolder, find_run
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, check_installed, did_you_mean, one_line
from cnnlab.utils.io import new_folder, write_atomically

CHECKED = 256  # test images on which the file must agree with the network
TOLERANCE = 1e-4  # of a probability
INPUT_DESCRIPTIONS = {
    "line": "something coloured on black",
    "digit": "one light digit on black, as in MNIST",
    "image": "any",
    "photo": "any",
}

Answers = Callable[[Tensor], dict[str, Tensor]]


class Probabilities(nn.Module):
    """{head: probabilities float32 (B, classes)} of images float32 (B, C, H, W) in [0, 1]."""

    def __init__(self, net: nn.Module, heads: Sequence[Head]) -> None:
        super().__init__()
        self.net, self.heads = frozen_copy(net), tuple(heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {head.name: head.probabilities(logits[head.name]) for head in self.heads}


class _InOrder(nn.Module):
    """The probabilities of all heads as a tuple. Weights are numbered: torch's exporter writes their names as Python
    code, and `class` would be a syntax error there."""

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__()
        state = probabilities.state_dict()
        self.names, self.hidden = list(state), (probabilities,)
        self.values = nn.ParameterList([nn.Parameter(value, requires_grad=False) for value in state.values()])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, self.values, strict=True))
        return tuple(torch.func.functional_call(self.hidden[0], state, (images,)).values())


def metadata(run: RunFolder) -> dict[str, str]:
    """Return the metadata of the file: {"heads": {head: class names} as JSON, "input": a sentence,
    ...}."""
    shape = ", ".join(map(str, run.image_shape))
    colours = {1: "grey", 3: "RGB"}.get(run.image_shape[0], f"{run.image_shape[0]} channels")
    return {
        "title": run.title,
        "heads": json.dumps({head.name: head.classes for head in run.heads}, ensure_ascii=False),
        "input": f"images: float32 (batch, {shape}) in [0, 1], {colours}; {INPUT_DESCRIPTIONS[run.input_type]}",
        "output": "one per head: probabilities, float32 (batch, classes)",
        "cnnlab": __version__,
    }


def to_torch_export(run: RunFolder) -> bytes:
    """Return the file of a `torch.export` program: any number of images to {head: probabilities}."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_program(Probabilities(run.net, run.heads), run), file, extra_files=metadata(run))
    return file.getvalue()


def to_onnx(run: RunFolder) -> bytes:
    """Return an ONNX file: any number of images to one output per head. Raises `UserError` for missing packages."""
    check_installed("export", "onnx", "onnxscript", "onnxruntime")
    with _quiet():
        program = _program(_InOrder(Probabilities(run.net, run.heads)), run)
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    _name_outputs(made.model.graph, [head.name for head in run.heads])
    made.model.metadata_props.update(metadata(run))
    return bytes(made.model_proto.SerializeToString())


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Name the outputs of an ONNX graph; another value with one of the names is renamed."""
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.name in names:
            value.name = f"{value.name}.inner"
    for name, output in zip(names, graph.outputs, strict=True):
        output.name = name


def _program(module: nn.Module, run: RunFolder) -> torch.export.ExportedProgram:
    batch = {"images": {0: torch.export.Dim("batch")}}
    try:
        return torch.export.export(module.eval(), (torch.zeros(2, *run.image_shape),), dynamic_shapes=batch)
    except (RuntimeError, KeyError) as error:  # PyTorch 2.6 fails for ONNX
        message = f"PyTorch {torch.__version__} cannot export this network; a newer one may: {one_line(error):.160}"
        raise UserError(message) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about their own code."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)


def open_torch_export(content: bytes) -> Answers:
    """Return the program in a file as a function."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda images: dict(module(images))


def open_onnx(content: bytes) -> Answers:
    """Return the network in an ONNX file as a function."""
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def answers(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {session.get_inputs()[0].name: images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}

    return answers


def largest_difference(run: RunFolder, answers: Answers, images: Tensor) -> float:
    """Return the largest difference of a probability between an exported network and the run's; NaN for a NaN."""
    with torch.no_grad():
        expected, exported = Probabilities(run.net, run.heads)(images), answers(images)
    if any(exported[name].shape != values.shape for name, values in expected.items()):
        return float("inf")
    return torch.stack([(exported[name] - values).abs().max() for name, values in expected.items()]).max().item()


FORMATS = {
    "onnx": (to_onnx, open_onnx, "model.onnx"),
    "torch_export": (to_torch_export, open_torch_export, "model.pt2"),
}

USAGE = {
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
    """Export with `conf/export.yaml`, check the file on 256 test images, and print how to use it; return its
    path. Raises `UserError` before anything is written where file and network differ."""
    run = RunFolder(find_run(cfg.run))
    if cfg.format not in FORMATS:
        raise UserError(f"there is no format '{cfg.format}'{did_you_mean(str(cfg.format), FORMATS)}")
    convert, opened, name = FORMATS[cfg.format]
    content = convert(run)
    images = run.test_split.inputs(torch.arange(min(CHECKED, len(run.test_split))))
    difference = largest_difference(run, opened(content), images)
    if not difference <= TOLERANCE:
        raise UserError(f"the exported network is not the same: its probabilities differ by {difference:.2g}")
    path = new_folder(Path(str(cfg.out)).expanduser() if cfg.out else run.path / "export") / name
    write_atomically(path, content)
    shape = ", ".join(map(str, run.image_shape))
    echo(f"the same to {difference:.1e} on {len(images)} test images\nfile  {path}\n\nTo use it elsewhere:\n")
    echo(USAGE[cfg.format].format(file=str(path), shape=shape))
    return path
