"""One run, kept open: answers to one image after another, fast enough to follow a hand.

Answers are mappings for JSON; pixels and maps are bytes as base64 (see `reporting.encode`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.api import Run
from cnnlab.data.datamodule import sample_indices
from cnnlab.data.line_scene import LineScene, draw
from cnnlab.data.rendering import ATTRIBUTES, COLOURS, STYLES
from cnnlab.interpret.attribution import Method, attribute_head
from cnnlab.interpret.inputs import from_split, pick
from cnnlab.interpret.method_names import method_description, method_title
from cnnlab.interpret.metrics import rank_accuracy, sobel
from cnnlab.interpret.network import (
    HeadWrapper,
    frozen_copy,
    leaf_modules,
    predict_logits,
    receptive_fields,
    record_activations,
)
from cnnlab.interpret.prediction import image_warnings
from cnnlab.interpret.registry import named_method
from cnnlab.models.heads import Head
from cnnlab.play.questions import Question, Source
from cnnlab.reporting.encode import as_base64, colour_tables, in_colour, levels
from cnnlab.utils.console import command_line, echo
from cnnlab.utils.errors import UserError, did_you_mean, user_errors

MAX_CHANNELS = 64  # of a layer that are shown, the first
SEARCHED = 2000  # test images among which the surest mistake, or the nearest of another class, is looked for
FRAMES = 21  # of a way from one class to another
EXAMPLES = 8
# Of all attribution methods those that answer while a line is moved.
METHODS = (
    *("grad_cam", "guided_grad_cam", "hires_cam", "input_x_gradient", "integrated_gradients", "layer_cam", "lrp"),
    *("occlusion", "saliency"),
)


class LiveRun:
    """A run and a private copy of its network."""

    def __init__(self, run: Run) -> None:
        self.run, self.net = run, frozen_copy(run.net)
        self.heads = {head.name: head for head in run.heads}
        self.wrappers = {name: HeadWrapper(self.net, name) for name in self.heads}
        style = run.config.data.get("style")
        self.style = style if style in STYLES else STYLES[0]
        self.of_lines = run.input_type == "line" and run.image_shape == (3, 28, 28)
        self.visualized = lru_cache(maxsize=256)(self._visualized)

    @cached_property
    def methods(self) -> dict[str, Method]:
        return {name: named_method(name)[1] for name in METHODS}

    @cached_property
    def layers(self) -> list[dict[str, Any]]:
        """The layers on the page in running order: name, kind, branch ("" for the stem), channels, how many are shown,
        size [h, w], and receptive fields."""
        skipped = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)
        modules = {name: layer for name, layer in leaf_modules(self.net).items() if not isinstance(layer, skipped)}
        image = torch.zeros(1, *self.run.image_shape)
        with record_activations(self.net, modules) as outputs, torch.no_grad():
            self.net(image)
        known = {head: {layer.name for layer in wrapper.path(image)} for head, wrapper in self.wrappers.items()}
        described = []
        for name, output in outputs.items():
            users = [head for head, path in known.items() if name in path]
            branch = name.partition(".")[0]
            if not users or output.ndim not in (2, 4) or name == f"{branch}.out":
                continue
            size = list(output.shape[2:])
            facts = {
                "name": name,
                "kind": _kind(modules[name]),
                "branch": branch if branch in self.heads else "",
                "channels": output.shape[1],
                "shown": min(output.shape[1], MAX_CHANNELS),
                "size": size or [1, 1],
                "looks": None,
            }
            if size:
                fields = receptive_fields(self.wrappers[users[0]], name, image)
                facts["looks"] = [{"start": f.start, "step": f.step, "size": f.size} for f in fields]
            described.append(facts)
        return described

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Everything the page needs to know about the run."""
        channels, height, width = self.run.image_shape
        first = next((name for name, layer in leaf_modules(self.net).items() if isinstance(layer, nn.Conv2d)), None)
        return {
            "title": self.run.title,
            "folder": str(self.run.path),
            "explain": command_line("explain", "run", self.run.path),
            "input_type": self.run.input_type,
            "size": [height, width],
            "channels": channels,
            "heads": [{"name": head.name, "classes": head.classes} for head in self.heads.values()],
            "methods": [
                {"name": name, "title": method_title(name), "words": method_description(name)} for name in self.methods
            ],
            "layers": self.layers,
            "first": first,
            "colours": self._colours() if self.of_lines else None,  # of lines
            "examples": (examples := list(self._examples())),
            "tests": len(self.run.test_split) if examples else 0,
            "tables": colour_tables(),
        }

    def _colours(self) -> dict[str, tuple[int, int, int]]:
        """Return the line colours that the network knows, by name."""
        heads = [part for head in self.heads.values() for part in (head.parts or (head,))]
        known = next((head.classes for head in heads if head.name == "colour"), tuple(COLOURS))
        return {name: COLOURS[name] for name in known if name in COLOURS}

    def _examples(self) -> Iterator[dict[str, Any]]:
        """Yield varied test images; none without a data set."""
        try:
            split = self.run.test_split
        except UserError as error:
            echo(f"! {self.run.path}: no test images ({error})")
            return
        indices = pick(self.net, self.run.heads, split, min(EXAMPLES, len(split)))
        examples = from_split(split, indices)
        pixels = in_colour((examples.images * 255).round().to(torch.uint8)).permute(0, 2, 3, 1)
        for place, index in enumerate(indices):
            yield {"index": index, "pixels": as_base64(pixels[place])}

    def image(self, source: Source, of: LiveRun) -> tuple[Tensor, list[str]]:
        """Return the network's input uint8 (C, H, W), with notes on its conversion. Test images come from the run `of`.
        Raises `UserError`."""
        if source.index is not None:
            of._check_index(source.index)
            pixels = of.run.test_split.images(torch.tensor([source.index]))[0]
            if of is self or tuple(pixels.shape) == self.run.image_shape:
                return pixels, []
            return self._from_outside(in_colour(pixels[None])[0].permute(1, 2, 0).contiguous().numpy())
        if source.line is not None:
            pixels = draw([source.line], self.style)[0]
            return (pixels, []) if self.of_lines else self._from_outside(pixels.permute(1, 2, 0).contiguous().numpy())
        return self._from_outside(source.drawing)

    def _from_outside(self, pixels: Any) -> tuple[Tensor, list[str]]:
        inputs = self.run.inputs(pixels)
        return (inputs.images[0] * 255).round().to(torch.uint8), inputs.notes[0]

    def _check_index(self, index: int) -> None:
        if index >= len(self.run.test_split):
            raise UserError(f"input.test.index: there are 0..{len(self.run.test_split) - 1}")

    def answer(self, question: Question, of: LiveRun) -> dict[str, Any]:
        """Return the network's answer and its heatmaps. Raises `UserError`."""
        if question.method is not None and question.method not in self.methods:
            raise UserError(f"there is no method '{question.method}'{did_you_mean(question.method, self.methods)}")
        before, notes = self.image(question.source, of)
        image = question.painted(before)
        inputs = torch.stack([image, before] if question.paint else [image]).float() / 255
        shown = [layer["name"] for layer in self.layers] if question.inside else []
        with record_activations(self.net, shown) as outputs, torch.no_grad():
            logits = self.net(inputs)
        heads, edges = {}, sobel(inputs[:1])
        for name, head in self.heads.items():
            shares, *shares_before = head.probabilities(logits[name]).tolist()
            evidence = self._evidence(head, question, of, inputs[:1], shares, edges)
            heads[name] = {"probabilities": shares, "before": shares_before[0] if shares_before else None, **evidence}
        return {
            "pixels": as_base64(in_colour(image[None])[0].permute(1, 2, 0)),
            "notes": notes,
            "true": self._true_classes(question, of),
            "heads": heads,
            "layers": {name: _scaled(outputs[name][0, :MAX_CHANNELS]) for name in shown},
        }

    def ood(self, question: Question, of: LiveRun) -> dict[str, Any]:
        """Return the out-of-distribution score (None without a detector), and why the image is `empty` ("" if it is
        not)."""
        pixels, notes = self.image(question.source, of)
        image = question.painted(pixels)[None].float() / 255
        detector = self.run.ood_detector
        score = None if detector is None else detector.scores(self.net, image).item()
        return {"ood": score, "empty": image_warnings(image, None, [notes])[0]}

    def _evidence(
        self, head: Head, question: Question, of: LiveRun, image: Tensor, shares: list[float], edges: Tensor
    ) -> dict[str, Any]:
        """Return the heatmap for one class of a head, the right pixels, and the map's rank accuracy."""
        name, evidence = head.name, dict[str, Any]()
        target = question.targets.get(name, max(range(len(shares)), key=shares.__getitem__))
        if target >= len(head.classes):
            raise UserError(f"targets.{name}: the classes are 0..{len(head.classes) - 1}")
        maps = None
        if question.method is not None:
            try:
                with user_errors(f"method.{question.method}"):
                    result = attribute_head(
                        self.wrappers[name], image, target, self.methods[question.method], head.classes, question.method
                    )
                maps = result.maps
                evidence |= {"target": target, "map": _scaled(maps[0]), "warnings": result.warnings}
            except UserError as error:
                evidence |= {"target": target, "map": None, "why": str(error)}
        truth = self._truth(head, question, of)
        if truth is not None:
            truth = question.unpainted(truth)
            evidence["truth"] = as_base64(truth.to(torch.uint8))
            evidence["chance"] = truth.float().mean().item()
            if maps is not None and truth.any():
                both = rank_accuracy(torch.cat([maps, edges]), truth.expand(2, -1, -1))
                evidence["rank"], evidence["edges"] = both.tolist()
        return evidence

    def _true_classes(self, question: Question, of: LiveRun) -> dict[str, str]:
        """Return {head: true class} for a test image of this run, else {}."""
        if question.source.index is None or of is not self:
            return {}
        targets = self.run.test_split.targets(torch.tensor([question.source.index]))
        return {name: head.classes[int(targets[name])] for name, head in self.heads.items()}

    def _truth(self, head: Head, question: Question, of: LiveRun) -> Tensor | None:
        """Return the right pixels for a head's question, bool (H, W), or None."""
        parts = [part.name for part in head.parts or (head,)]
        if question.source.line is not None and self.of_lines and set(parts) <= set(ATTRIBUTES):
            return question.source.line.truth(parts, self.style)
        if question.source.index is not None and of is self:
            truths = self.run.test_split.truths(torch.tensor([question.source.index]), head)
            return truths["counterfactual"][0] if "counterfactual" in truths else None
        return None

    def path_to_counterfactual(self, question: Question, name: str, of: LiveRun) -> dict[str, Any]:
        """Return the path from the image to one with another answer of a head, and all answers along it. For a line the
        end is the nearest line with another value of the attribute, or this line without paint; else the nearest test
        image, blended in."""
        if name not in self.heads:
            raise UserError(f"there is no head '{name}'{did_you_mean(name, self.heads)}")
        first, line, scenes = question.painted(self.image(question.source, of)[0]), question.source.line, None
        attribute, end = self._nearest_line(line, first, name) if line is not None and self.of_lines else ("", None)
        if line is not None and end is not None and not question.paint:
            scenes, words = line.path_to(end, FRAMES), f"another {attribute}"
            frames = draw(scenes, self.style)
        else:
            if end is not None:
                last = draw([end], self.style)[0]
                words = "this line without the paint" if end == line else f"another {attribute}, without the paint"
            else:
                last, index = self._nearest_of_another_class(first, name)
                words = f"test image {index}, blended in"
            shares = torch.linspace(0, 1, FRAMES)[:, None, None, None]
            frames = (first + shares * (last.float() - first)).round().to(torch.uint8)
        with torch.no_grad():
            logits = self.net(frames.float() / 255)
        probabilities = {key: head.probabilities(logits[key]).tolist() for key, head in self.heads.items()}
        pixels = in_colour(frames).permute(0, 2, 3, 1)
        lines = None if scenes is None else [vars(scene) for scene in scenes]
        return {"frames": [as_base64(frame) for frame in pixels], "said": probabilities, "lines": lines, "words": words}

    def _predicted(self, images: Tensor, name: str) -> Tensor:
        """Return the predicted classes int64 (N,) of images uint8 (N, C, H, W)."""
        with torch.no_grad():
            return self.heads[name].predict(self.wrappers[name].logits(images.float() / 255))

    def _nearest_line(self, line: LineScene, image: Tensor, name: str) -> tuple[str, LineScene | None]:
        """Return an attribute and the line with another value of it that gets another answer and differs in the fewest
        pixels; None if there is none."""
        parts = [part.name for part in self.heads[name].parts or (self.heads[name],)]
        if not set(parts) <= set(ATTRIBUTES):
            return "", None
        ends = [(part, end) for part in parts for end in line.of_each_class(part, self._colours())]
        drawn = draw([end for _, end in ends], self.style)
        changed = (drawn != image).any(dim=1).sum(dim=(1, 2)).double()
        changed[self._predicted(drawn, name) == self._predicted(image[None], name)] = torch.inf
        nearest = int(changed.argmin())
        return ends[nearest] if changed[nearest].isfinite() else ("", None)

    def _nearest_of_another_class(self, image: Tensor, name: str) -> tuple[Tensor, int]:
        own = self._predicted(image[None], name)
        rows, images, classes = self._neighbours
        others = (classes[name] != own).nonzero()[:, 0]
        if not len(others):
            raise UserError(f"the network takes every test image for {self.heads[name].classes[int(own)]}")
        apart = (images[others].float() - image).square().flatten(1).sum(dim=1)
        nearest = int(others[apart.argmin()])
        return images[nearest], int(rows[nearest])

    @cached_property
    def _neighbours(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Random test images: indices int64 (N,), pixels uint8 (N, C, H, W), and {head: predictions (N,)}."""
        rows = sample_indices(len(self.run.test_split), min(SEARCHED, len(self.run.test_split)))
        images = self.run.test_split.images(rows)
        logits = predict_logits(self.net, list(self.heads), images.float() / 255)
        return rows, images, {name: head.predict(logits[name]) for name, head in self.heads.items()}

    def unit(self, layer: str, channel: int) -> dict[str, Any]:
        """Return the kernel of a channel, if it has one, and its feature visualisation. Raises `UserError`."""
        known = {facts["name"]: facts for facts in self.layers}
        if layer not in known:
            raise UserError(f"there is no layer '{layer}'{did_you_mean(layer, known)}")
        if not 0 <= channel < known[layer]["channels"]:
            raise UserError(f"channel: layer '{layer}' has 0..{known[layer]['channels'] - 1}")
        module = self.net.get_submodule(layer)
        kernel, bias = None, 0.0
        if isinstance(module, nn.Conv2d):
            kernel = module.weight[channel].tolist()
            bias = 0.0 if module.bias is None else module.bias[channel].item()
        return {"kernel": kernel, "bias": bias, **self.visualized(layer, channel)}

    def _visualized(self, layer: str, channel: int) -> Mapping[str, Any]:
        found = self.run.visualize_features(layer, [channel])
        pixels = (found.images[0] * 255).round().to(torch.uint8)
        return {
            "pixels": as_base64(in_colour(pixels[None])[0].permute(1, 2, 0)),
            "activation": found.activation.item(),
            "dead": bool(found.dead.item()),
        }


def _scaled(values: Tensor) -> dict[str, Any]:
    """Return a map, or the maps of a layer, on one scale."""
    low, high = (extreme.item() for extreme in values.aminmax())
    return {"values": as_base64(levels(values)), "most": max(-low, high), "signed": low < 0}


def _kind(layer: nn.Module) -> str:
    """Return the type of a layer in words."""
    size = getattr(layer, "kernel_size", None)
    if isinstance(layer, nn.Conv2d):
        return f"convolution {layer.kernel_size[0]} × {layer.kernel_size[1]}"
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        height, width = size if isinstance(size, tuple) else (size, size)
        return f"{'max' if isinstance(layer, nn.MaxPool2d) else 'mean'}-pooling {height} × {width}"
    names = {nn.BatchNorm2d: "batch norm", nn.Linear: "dense", nn.AdaptiveAvgPool2d: "mean over places"}
    return next((name for kind, name in names.items() if isinstance(layer, kind)), type(layer).__name__)
