"""One explanation of one run: what is asked is checked, computed, drawn, and written to a new folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from cnnlab import findings, plots
from cnnlab.build import build_methods, user_errors
from cnnlab.cli import as_list
from cnnlab.data.datamodule import sample_indices
from cnnlab.data.outside import image_files
from cnnlab.errors import UserError, did_you_mean
from cnnlab.explain import explanation_page
from cnnlab.explain.activation_maximization import AscentConfig, maximize_channels, maximize_classes
from cnnlab.explain.activations import activations
from cnnlab.explain.attribution import Attribution, attribute
from cnnlab.explain.heatmap_viewer import Maps, ranks, viewer
from cnnlab.explain.inputs import Inputs, from_split, pick
from cnnlab.explain.method_names import method_title
from cnnlab.explain.network import HeadWrapper, frozen_copy, layer_named, leaf_modules, path_to_head
from cnnlab.hardware import disable_malloc_trim
from cnnlab.html import render
from cnnlab.io import new_folder, write_atomically, write_json
from cnnlab.log import command_line, echo
from cnnlab.models.heads import Head
from cnnlab.prediction import doubts
from cnnlab.provenance import versions
from cnnlab.runs import SAMPLE, Run, open_run

PICKED = 6  # images explained where none is asked for
SHOWN_TYPES = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d)


def explain_run(cfg: DictConfig) -> Path:
    """Explain what `cfg` (conf/explain.yaml) asks for; returns the page's path.

    Raises `UserError` for what the user can mend, before anything is written.
    """
    disable_malloc_trim()
    run = open_run(cfg.run)
    return Explanation(cfg, run).write()


class Explanation:
    """An explanation while it is made."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run, self.data, self.net = cfg, run, run.test_data, run.net
        self.heads = self._heads()
        self.methods = build_methods(cfg.method)
        with user_errors("ascent"):
            self.ascent = AscentConfig(**OmegaConf.to_container(cfg.ascent))  # type: ignore[arg-type]
        self.inputs = self._inputs()
        self.images = self.inputs.images
        self.pixels = (self.images * 255).round().to(torch.uint8)
        self.layers = self._layers()
        self.first_convolution = _first_convolution(self.net)
        with torch.no_grad():
            logits = frozen_copy(self.net)(self.images)
        self.probabilities = {head.name: head.probabilities(logits[head.name]) for head in self.run.task.heads}
        self.targets = self._targets()
        self.raw: dict[str, Tensor] = {"images": self.pixels}

    def _heads(self) -> list[Head]:
        every = {head.name: head for head in self.run.task.heads}
        names = as_list(self.cfg.heads) or list(every)
        for name in names:
            if name not in every:
                raise UserError(f"there is no head '{name}'{did_you_mean(name, every)}")
        return [every[name] for name in names]

    def _layers(self) -> list[str]:
        """The layers asked for; else convolutions, activations and poolings on the way to the heads."""
        asked = as_list(self.cfg.layers)
        for name in asked:
            layer_named(self.net, name)
        if asked:
            return asked
        on_the_way = {
            name for head in self.heads for name in path_to_head(HeadWrapper(self.net, head.name), self.images)
        }
        layers = leaf_modules(self.net).items()
        return [name for name, layer in layers if isinstance(layer, SHOWN_TYPES) and name in on_the_way]

    def _inputs(self) -> Inputs:
        split = self.data.splits["test"]
        if self.cfg.image is not None:
            if self.cfg.indices is not None:
                raise UserError("give image or indices, not both")
            return self._from_outside()
        if self.cfg.indices is None:
            return from_split(split, pick(self.net, self.run.task.heads, split, PICKED))
        indices = self.cfg.indices if isinstance(self.cfg.indices, ListConfig) else [self.cfg.indices]
        if not indices or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
            raise UserError(f"indices={self.cfg.indices} are not whole numbers")
        return from_split(split, list(indices))

    def _from_outside(self) -> Inputs:
        """Images of the user's own; a note says which are empty, or unlike the training images."""
        inputs, detector = self.run.inputs(image_files(as_list(self.cfg.image))), self.run.ood_detector
        scores = None if detector is None else detector.scores(self.net, inputs.images)
        doubtful = doubts(inputs.images, scores, inputs.notes)
        notes = [[*own, *([doubt] if doubt else [])] for own, doubt in zip(inputs.notes, doubtful, strict=True)]
        return replace(inputs, notes=notes)

    def _targets(self) -> list[tuple[Head, str, Tensor]]:
        """(head, word, class of each image int64 (N,)) for every head and each of `targets` that it knows."""
        found = []
        if not as_list(self.cfg.targets):
            raise UserError("targets=[]: name at least one, like targets=[predicted]")
        for word in as_list(self.cfg.targets):
            places = {head.name: head.number(word) for head in self.heads}
            common = word in ("predicted", "true")
            knowing = [head for head in self.heads if common or places[head.name] is not None]
            if not knowing:
                known = ["predicted", "true", *(name for head in self.heads for name in head.classes)]
                raise UserError(f"there is no target '{word}'{did_you_mean(word, known)}")
            if word == "true" and self.inputs.truth is None:
                raise UserError("targets=true: the true class of an image from outside is not known")
            for head in knowing:
                if word == "predicted":
                    target = self.probabilities[head.name].argmax(dim=1)
                elif word == "true":
                    assert self.inputs.truth is not None
                    target = self.inputs.truth[head.name]
                else:
                    place = places[head.name]
                    assert place is not None
                    target = torch.full((len(self.images),), place)
                found.append((head, word, target))
        return found

    def write(self) -> Path:
        """Compute, draw and write everything; the manifest last."""
        folder = new_folder(Path(str(self.cfg.out)).expanduser() if self.cfg.out else self.run.path / "explain")
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, transient=True, disable=not Console().is_terminal) as bar:
            task = bar.add_task("heatmaps")
            maps, truths = self._heatmaps(), self._truths()
            inputs = self._write_heatmaps(folder, maps)
            bar.update(task, description="activations")
            layers = self._write_activations(folder)
            bar.update(task, description="activation maximization")
            filters = self._write_filters(folder)
            bar.update(task, description="page")
            warnings = [
                f"{method_title(name)}, {head}, {word}: {warning}"
                for (name, word), by_head in maps.items()
                for head, result in by_head.items()
                for warning in result.warnings
            ]
            arrays: dict[str, Any] = {name: value.numpy() for name, value in self.raw.items()}
            np.savez_compressed(folder / "maps.npz", **arrays)
            manifest = {
                "run": str(self.run.path),
                "title": self.run.title,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": OmegaConf.to_container(self.cfg, resolve=True),
                "images": self.inputs.names,
                "heads": [head.name for head in self.heads],
                "layers": self.layers,
                "methods": list(self.methods),
                "warnings": warnings,
                "arrays": {name: list(value.shape) for name, value in self.raw.items()},
                "versions": versions(),
            }
            html = render(
                "explanation.html",
                manifest=manifest,
                findings=findings.of_explanation(
                    self.heads,
                    self.probabilities,
                    self.inputs,
                    ranks({place: found for place, found in maps.items() if not _warned(found)}, self.images, truths),
                ),
                inputs=inputs,
                viewer=viewer(self.inputs, self.heads, self.probabilities, maps, truths),
                layers=layers,
                filters=filters,
                warnings=warnings,
                score=command_line("score", "run", self.run.path),
            )
            write_atomically(folder / "index.html", html)
            write_json(folder / "manifest.json", manifest)
        for warning in warnings:
            echo(f"! {warning}")
        echo(f"page  {folder / 'index.html'}")
        return folder / "index.html"

    def _heatmaps(self) -> Maps:
        """Every method's maps, for every kind of target and head."""
        found: dict[tuple[str, str], dict[str, Attribution]] = {}
        for head, word, target in self.targets:
            for name, method in self.methods.items():
                with user_errors(f"method.{name}"):
                    bound = self.run.bind_baselines(method)
                    result = attribute(self.net, self.images, target, bound, head.name, head.classes, name)
                label = word if word in ("predicted", "true") else head.classes[int(target[0])]
                found.setdefault((name, label), {})[head.name] = result
                key = f"{name}/{head.name}/{word}"
                self.raw |= {key: result.maps, f"{key}/target": target}
                if result.layer_map is not None:
                    self.raw[f"{key}/{result.layer_map.layer}"] = result.layer_map.values
        return found

    def _truths(self) -> dict[str, Tensor]:
        """{head: the true pixels of the answer, bool (N, H, W)} of images of the test split, where they are known."""
        if self.inputs.indices is None:
            return {}
        rows = torch.tensor(self.inputs.indices)
        known = {head.name: self.run.test_split.truths(rows, head) for head in self.heads}
        return {name: truths["counterfactual"] for name, truths in known.items() if "counterfactual" in truths}

    def _write_heatmaps(self, folder: Path, maps: Maps) -> list[dict[str, Any]]:
        """A picture an image; returns what the page says of each: name, notes and answers."""
        shown = []
        for i, name in enumerate(self.inputs.names):
            figure = explanation_page.heatmap_figure(self.pixels[i].numpy(), i, self.heads, self.probabilities, maps)
            plots.save(figure, folder / f"heatmaps_{i + 1}.png")
            answers = explanation_page.answers(self.run.task.heads, i, self.probabilities, self.inputs.truth)
            notes = self.inputs.notes[i] if self.inputs.notes else []
            shown.append({"name": name, "notes": notes, "answers": answers})
        return shown

    def _write_activations(self, folder: Path) -> list[dict[str, Any]]:
        """A picture a layer; returns what the page shows of each: name, text and picture."""
        split = self.data.splits["test"]
        sample = split.inputs(sample_indices(len(split), min(SAMPLE, len(split))))
        shown = []
        for answer in activations(self.net, self.layers, self.images, sample, self.inputs.names):
            self.raw[f"activations/{answer.layer}"] = answer.maps[:, answer.shown]
            self.raw[f"activations/{answer.layer}/channels"] = answer.shown
            picture = folder / f"activations_{answer.layer}.png"
            plots.save(answer.plot(), picture)
            shown.append({"name": answer.layer, "text": answer.text, "picture": picture})
        return shown

    def _write_filters(self, folder: Path) -> list[Path]:
        """The first layer's kernels, the filters of the convolutions and dense layers among those shown, and of every
        head's classes; returns the pictures."""
        name, kernels = self.first_convolution
        drawn = [folder / f"kernels_{name}.png"]
        plots.save(explanation_page.kernels_figure(name, kernels), drawn[0])
        found = []
        for layer in self.layers:
            if isinstance(layer_named(self.net, layer), nn.Conv2d | nn.Linear):
                channels = self.raw[f"activations/{layer}/channels"]
                found.append(maximize_channels(self.net, layer, channels, self.data.image_shape, self.ascent))
        found += [maximize_classes(self.net, head, self.data.image_shape, self.ascent) for head in self.heads]
        for result in found:
            self.raw[f"filters/{result.name}"] = result.images
            drawn.append(folder / f"filters_{result.name}.png")
            plots.save(result.plot(), drawn[-1])
        return drawn


def _warned(by_head: Mapping[str, Attribution]) -> bool:
    """Whether maps of any head warn: the page then says nothing good of them."""
    return any(result.warnings for result in by_head.values())


def _first_convolution(net: nn.Module) -> tuple[str, Tensor]:
    """Name and kernels (filters, C, k, k) of the convolution that sees the image."""
    for name, layer in leaf_modules(net).items():
        if isinstance(layer, nn.Conv2d):
            return name, layer.weight.detach()
    raise UserError("the network has no convolution")
