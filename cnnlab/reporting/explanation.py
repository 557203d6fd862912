"""The explanation of a run: heatmaps, activations and filters, on one page and as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.data.datamodule import sample_indices
from cnnlab.data.image_io import image_files
from cnnlab.interpret.activations import SAMPLE, activations
from cnnlab.interpret.attribution import Attribution, attribute, bind_baselines, displayable
from cnnlab.interpret.feature_visualization import AscentConfig, visualize_channels, visualize_classes
from cnnlab.interpret.inputs import Inputs, from_split, pick, read_inputs, target_classes
from cnnlab.interpret.layer_table import layer_table, layer_text
from cnnlab.interpret.method_names import method_title
from cnnlab.interpret.metrics import rank_accuracy, sobel
from cnnlab.interpret.network import HeadWrapper, batch_size, frozen_copy, layer_named, leaf_modules, path_to_head
from cnnlab.interpret.ood import load_ood_detector
from cnnlab.interpret.own_network import OwnNetwork, own_network
from cnnlab.interpret.prediction import image_warnings
from cnnlab.interpret.registry import build_methods
from cnnlab.models.heads import Head
from cnnlab.reporting.encode import as_base64, colour_tables, in_colour, levels
from cnnlab.reporting.html import render
from cnnlab.run import RunFolder, find_run, head_named
from cnnlab.utils.cli import as_list
from cnnlab.utils.console import command_line, echo, percent, working
from cnnlab.utils.errors import UserError, did_you_mean, user_errors
from cnnlab.utils.hardware import disable_malloc_trim
from cnnlab.utils.io import check_is_folder, new_folder, write_atomically, write_json
from cnnlab.utils.versions import versions

PICKED = 6  # images that are explained if none are named
MOST_ROWS = 12  # images with activations
MOST_LAYERS, MOST_PIXELS = 40, 64 * 64  # with activations, of images with feature visualisations
SHOWN_TYPES = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d)
EDGES = "edge detector"
Maps = Mapping[tuple[str, str], Mapping[str, Attribution]]  # {(method, target's word): {head: its evidence}}
Shares = Mapping[str, Tensor]  # {head: probabilities float32 (N, classes)}


def explain_run(cfg: DictConfig) -> Path:
    """Write an explanation with `conf/explain.yaml`; return the page's path. Raises `UserError` before anything is
    written."""
    disable_malloc_trim()
    check_is_folder(cfg.out)
    return Explanation(cfg, own_network(cfg) or RunFolder(find_run(cfg.run))).write()


class Explanation:
    """An explanation while it is made: the settings are checked here, `write` computes and writes."""

    def __init__(self, cfg: DictConfig, run: RunFolder | OwnNetwork) -> None:
        self.cfg, self.run, self.net = cfg, run, frozen_copy(run.net)
        keys = run.named_heads() if isinstance(run, OwnNetwork) else {head: head.name for head in run.heads}
        self.all_heads, self.wrappers = tuple(keys), {head.name: HeadWrapper(self.net, keys[head]) for head in keys}
        self.heads = [head_named(self.all_heads, name) for name in as_list(cfg.heads)] or list(self.all_heads)
        self.methods = build_methods(cfg.method)
        with user_errors("ascent"):
            self.ascent = AscentConfig(**OmegaConf.to_container(cfg.ascent))  # type: ignore[arg-type]
        self.inputs = self._inputs()
        self.images = self.inputs.images
        self.pixels = (displayable(self.images)[0] * 255).round().to(torch.uint8)
        self.layers = self._layers()
        self.first_layer = first_convolution(self.net)
        with torch.no_grad():
            batches = self.images.split(batch_size(self.images))
            self.probabilities = {name: torch.cat([wrapper.probabilities(batch).float() for batch in batches])
                                  for name, wrapper in self.wrappers.items()}  # fmt: skip
        self.predicted = {name: shares.argmax(dim=1) for name, shares in self.probabilities.items()}
        self.targets = self._targets()
        self.arrays: dict[str, Tensor] = {"images": self.pixels}
        if isinstance(run, OwnNetwork):
            words = {"weights": cfg.weights, "image_size": None if cfg.image_size == 224 else cfg.image_size}
            given = " ".join(f"{name}={value}" for name, value in words.items() if value is not None)
            self.folder = Path("outputs/explain")
            self.audit = f"python -m cnnlab.audit net={run.title} images=<folder> {given}".strip()
        else:
            self.folder, self.audit = run.path / "explain", command_line("audit", "run", run.path)

    def _inputs(self) -> Inputs:
        run, cfg = self.run, self.cfg
        if cfg.images is not None and cfg.indices is not None:
            raise UserError("give images or indices, not both")
        if isinstance(run, OwnNetwork):
            return run.inputs
        split = run.test_split
        if cfg.images is not None:
            inputs = read_inputs(image_files(as_list(cfg.images)), run.image_shape, run.input_type)
            detector = load_ood_detector(run.path)
            scores = None if detector is None else detector.scores(self.net, inputs.images)
            warnings = image_warnings(inputs.images, scores, inputs.notes)
            notes = [[*done, *([text] if text else [])] for done, text in zip(inputs.notes, warnings, strict=True)]
            return replace(inputs, notes=notes)
        if cfg.indices is None:
            return from_split(split, pick(self.net, run.heads, split, PICKED))
        indices = cfg.indices if isinstance(cfg.indices, ListConfig) else [cfg.indices]
        if not indices or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
            raise UserError(f"indices={cfg.indices} are not whole numbers")
        return from_split(split, list(indices))

    def _layers(self) -> list[str]:
        """Return the layers asked for, or the convolutions, activations and poolings that the heads depend on."""
        asked = as_list(self.cfg.layers)
        for name in asked:
            layer_named(self.net, name)
        if asked:
            return asked
        if isinstance(self.run, OwnNetwork):  # which may have hundreds of layers
            return self._two_layers()
        used = {name for head in self.heads for name in path_to_head(self.wrappers[head.name], self.images)}
        layers = leaf_modules(self.net).items()
        shown = [name for name, layer in layers if isinstance(layer, SHOWN_TYPES) and name in used]
        return shown if len(shown) <= MOST_LAYERS else self._two_layers()

    def _two_layers(self) -> list[str]:
        """Return the first and the last convolution that the first head depends on."""
        path = path_to_head(self.wrappers[self.heads[0].name], self.images)
        convolutions = [name for name in path if isinstance(layer_named(self.net, name), nn.Conv2d)]
        return list(dict.fromkeys([*convolutions[:1], *convolutions[-1:]]))

    def _targets(self) -> list[tuple[Head, str, Tensor]]:
        """Return (head, word, class of each image int64 (N,)) for every head and each of `targets` that it knows."""
        if not as_list(self.cfg.targets):
            raise UserError("targets=[]: name at least one, like targets=[predicted]")
        targets = []
        for word in as_list(self.cfg.targets):
            answerable = [
                (head, word, classes)
                for head in self.heads
                if (classes := target_classes(head, word, self.inputs, self.predicted[head.name])) is not None
            ]
            if not answerable:
                known = ["predicted", "true", *(name for head in self.heads for name in head.classes)]
                raise UserError(f"there is no target '{word}'{did_you_mean(word, known)}")
            targets += answerable
        return targets

    def write(self) -> Path:
        """Compute, draw and write everything; the manifest last."""
        with working() as progress:
            maps, truths = self._heatmaps(progress), self._truths()
            folder = new_folder(Path(str(self.cfg.out)).expanduser() if self.cfg.out else self.folder)
            for i in range(len(self.images)):
                figure = heatmap_figure(in_colour(self.pixels)[i].numpy(), i, self.heads, self.probabilities, maps)
                plots.save(figure, folder / f"heatmaps_{i + 1}.png")
            progress("activations")
            layers = self._write_activations(folder)
            progress("feature visualisation")
            filters = self._write_filters(folder)
            progress("page")
            rows = layer_table(self.net, self.run.image_shape)
            plots.save(plots.architecture(rows, self.run.title), folder / "architecture.png")
            warnings = []
            for (name, word), by_head in maps.items():
                warned = {head: result.warnings[0] for head, result in by_head.items() if result.warnings}
                if warned:
                    first = next(iter(warned.values()))
                    warnings.append(f"{method_title(name)}, {word} ({', '.join(warned)}): {first}")
            arrays: dict[str, Any] = {name: value.numpy() for name, value in self.arrays.items()}
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
                "arrays": {name: list(value.shape) for name, value in self.arrays.items()},
                "versions": versions(),
            }
            html = render(
                "explanation.html",
                manifest=manifest,
                mistakes=mistakes_sentence(self.all_heads, self.probabilities, self.inputs),
                ranks=rank_table(maps, self.images, truths),
                heads=[head.name for head in self.all_heads],
                inputs=self._answers(),
                viewer=viewer(self.inputs, self.pixels, self.heads, self.probabilities, maps, truths),
                layers=layers,
                filters=filters,
                visualised=len(filters) > (self.first_layer is not None),
                architecture=folder / "architecture.png",
                model=layer_text(self.net, rows),
                warnings=warnings,
                audit=self.audit,
            )
            write_atomically(folder / "index.html", html)
            write_json(folder / "manifest.json", manifest)
        for warning in warnings:
            echo(f"! {warning}")
        echo(f"page  {folder / 'index.html'}")
        return folder / "index.html"

    def _heatmaps(self, progress: Callable[[str], None]) -> Maps:
        """Return every method's maps for every kind of target and head."""
        maps: dict[tuple[str, str], dict[str, Attribution]] = {}
        for head, word, target in self.targets:
            for name, method in self.methods.items():
                progress(f"{method_title(name)}, {head.name}")
                with user_errors(f"method.{name}"):
                    bound = bind_baselines(method, lambda: self.run.baseline_images)
                    key = self.wrappers[head.name].head
                    result = attribute(self.net, self.images, target, bound, key, head.classes, name)
                label = word if word in ("predicted", "true") else head.classes[int(target[0])]
                maps.setdefault((name, label), {})[head.name] = result
                key = f"{name}/{head.name}/{word}"
                self.arrays |= {key: result.maps, f"{key}/target": target}
                if result.layer_map is not None:
                    self.arrays[f"{key}/{result.layer_map.layer}"] = result.layer_map.values
        return maps

    def _truths(self) -> dict[str, Tensor]:
        """Return {head: the right pixels bool (N, H, W)} of test images, where they are known."""
        if self.inputs.indices is None or isinstance(self.run, OwnNetwork):
            return {}
        rows = torch.tensor(self.inputs.indices)
        known = {head.name: self.run.test_split.truths(rows, head) for head in self.heads}
        return {name: truths["counterfactual"] for name, truths in known.items() if "counterfactual" in truths}

    def _answers(self) -> list[dict[str, Any]]:
        """Return each image's name, notes and answers."""
        notes, truth = self.inputs.notes, self.inputs.truth
        return [
            {
                "name": name,
                "notes": notes[i] if notes else [],
                "cells": [answer(head, self.probabilities, i, truth) for head in self.all_heads],
            }
            for i, name in enumerate(self.inputs.names)
        ]

    def _write_activations(self, folder: Path) -> list[dict[str, Any]]:
        """Write a picture per layer; return name, text and picture of each."""
        sample = self.images
        if isinstance(self.run, RunFolder):
            split = self.run.test_split
            sample = split.inputs(sample_indices(len(split), min(SAMPLE, len(split))))
        shown, few = [], self.images[:MOST_ROWS]
        for result in activations(self.net, self.layers, few, sample, self.inputs.names[:MOST_ROWS]):
            self.arrays[f"activations/{result.layer}"] = result.maps[:, result.shown]
            self.arrays[f"activations/{result.layer}/channels"] = result.shown
            picture = folder / f"activations_{result.layer}.png"
            plots.save(result.plot(), picture)
            shown.append({"name": result.layer, "text": result.text, "picture": picture})
        return shown

    def _write_filters(self, folder: Path) -> dict[str, Path]:
        """Write the first layer's kernels, and the feature visualisations of layers and classes; return {title:
        picture}."""
        pictures = dict[str, Path]()
        if self.first_layer is not None:
            name, kernels = self.first_layer
            pictures[f"{name}: learned kernels"] = folder / f"kernels_{name}.png"
            plots.save(kernels_figure(name, kernels), folder / f"kernels_{name}.png")
        if isinstance(self.run, OwnNetwork) or math.prod(self.run.image_shape[1:]) > MOST_PIXELS:
            return pictures  # ascent needs pixels in [0, 1], and takes hours on large images
        results, shape = [], self.run.image_shape
        for layer in self.layers:
            if isinstance(layer_named(self.net, layer), nn.Conv2d | nn.Linear):
                channels = self.arrays[f"activations/{layer}/channels"]
                results.append(visualize_channels(self.net, layer, channels, shape, self.ascent))
        results += [visualize_classes(self.net, head, shape, self.ascent) for head in self.heads]
        for result in results:
            self.arrays[f"filters/{result.name}"] = result.images
            what = "classes" if result.name in [head.name for head in self.heads] else "channels"
            pictures[f"{result.name}: {what}"] = path = folder / f"filters_{result.name}.png"
            plots.save(result.plot(), path)
        return pictures


def first_convolution(net: nn.Module) -> tuple[str, Tensor] | None:
    """Return name and kernels (filters, C, k, k) of the convolution that sees the image, None without one."""
    for name, layer in leaf_modules(net).items():
        if isinstance(layer, nn.Conv2d) and layer.in_channels in (1, 3):
            return name, layer.weight.detach()
    return None


def answer(head: Head, shares: Shares, i: int, truth: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Return a head's answer to image `i`, the class in second place, both with probability, and the true class (None
    if unknown)."""
    ranked = shares[head.name][i].argsort(descending=True, stable=True)[:2].tolist()
    first, second = (f"{head.classes[k]} {percent(shares[head.name][i, k].item())}" for k in ranked)
    true = None if truth is None else int(truth[head.name][i])
    return {"first": first, "second": second, "wrong": "" if true in (None, ranked[0]) else head.classes[true]}


def mistakes_sentence(heads: Sequence[Head], probabilities: Shares, inputs: Inputs) -> str:
    """Return how many answers are wrong, "" where the true classes are unknown."""
    if inputs.truth is None:
        return ""
    wrong = sum(int((probabilities[h.name].argmax(dim=1) != inputs.truth[h.name]).sum()) for h in heads)
    return f"{wrong} of {len(inputs) * len(heads)} answers to these {len(inputs)} images are wrong."


def ranks(maps: Maps, images: Tensor, truths: Mapping[str, Tensor]) -> dict[tuple[str, str, str], Tensor]:
    """Return {(method, target's word, head): rank accuracy float64 (N,)} where the right pixels, bool (N, H, W) by
    head, are known; the method is also `EDGES`."""
    accuracies = {}
    for head, mask in truths.items():
        edges = rank_accuracy(sobel(images), mask)
        for (method, word), by_head in maps.items():
            if head in by_head:
                accuracies[method, word, head] = rank_accuracy(by_head[head].maps, mask)
                accuracies[EDGES, word, head] = edges
    return accuracies


def rank_table(maps: Maps, images: Tensor, truths: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the mean rank accuracy of each method and of the edge detector, a column per head, the header first; []
    where the right pixels are unknown. Methods with warnings are left out."""
    trusted = {at: by_head for at, by_head in maps.items() if not any(r.warnings for r in by_head.values())}
    means = {key: values.nanmean().item() for key, values in ranks(trusted, images, truths).items()}
    rows = list(dict.fromkeys((method, word) for method, word, _ in means if method != EDGES))
    if not rows:
        return []
    heads = list(truths)
    table = [["", *heads]]
    for method, word in rows:
        cells = [f"{means[method, word, h]:.2f}" if (method, word, h) in means else "–" for h in heads]
        table.append([method_title(method) + ("" if word == "predicted" else f", {word}"), *cells])
    edges = [next((v for (m, _, head), v in means.items() if m == EDGES and head == h), float("nan")) for h in heads]
    return [*table, [EDGES, *(f"{value:.2f}" for value in edges)]]


def viewer(
    inputs: Inputs, images: Tensor, heads: Sequence[Head], shares: Shares, maps: Maps, truths: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the data of the page's heatmap viewer, for JSON."""
    pixels = in_colour(images)
    placed = ranks(maps, inputs.images, truths)
    shown = []
    for (method, word), by_head in maps.items():
        for head, result in by_head.items():
            known = {key: placed.get((name, word, head)) for key, name in (("rank", method), ("edges", EDGES))}
            shown.append(
                {
                    "method": method_title(method),
                    "target": word,
                    "head": head,
                    "classes": [(result.classes or [])[k] for k in result.targets.tolist()],
                    "shares": shares[head].gather(1, result.targets[:, None])[:, 0].tolist(),
                    "most": result.maps.abs().amax(dim=(1, 2)).tolist(),
                    "values": [as_base64(levels(values)) for values in result.maps],
                    "signed": bool((result.maps < 0).any()),
                    **{key: None if value is None else _or_none(value) for key, value in known.items()},
                }
            )
    predicted = {head.name: shares[head.name].argmax(dim=1) for head in heads}
    words, wrong = [], []
    for i, name in enumerate(inputs.names):
        true = {} if inputs.truth is None else {h.name: h.classes[inputs.truth[h.name][i]] for h in heads}
        answers = {head.name: head.classes[predicted[head.name][i]] for head in heads}
        words.append(" ".join([name, *answers.values(), *true.values()]))
        wrong.append({head: answer for head, answer in true.items() if answer != answers[head]})
    return {
        "size": list(pixels.shape[2:]),
        "heads": [head.name for head in heads],
        "images": [as_base64(image) for image in pixels.permute(0, 2, 3, 1)],
        "names": inputs.names,
        "words": words,
        "wrong": wrong,
        "maps": shown,
        "truths": {head: [as_base64(mask.to(torch.uint8)) for mask in masks] for head, masks in truths.items()},
        "colours": colour_tables(),
    }


def _or_none(values: Tensor) -> list[float | None]:
    """Return numbers for JSON, which has no NaN."""
    return [None if value != value else value for value in values.tolist()]


def heatmap_figure(image: plots.Array, i: int, heads: Sequence[Head], shares: Shares, maps: Maps) -> plots.Figure:
    """Draw the maps of image `i`, uint8 (C, H, W): a row per method and target, a column per head, and another one with
    the map over the image for one or two heads."""
    blank = np.full((3, *image.shape[1:]), 255, np.uint8)
    kinds = ("heatmap", "overlay") if len(heads) < 3 else ("heatmap",)
    tiles, captions = [], []
    for (method, word), by_head in maps.items():
        tiles.append(np.broadcast_to(image, blank.shape))
        captions.append(f"{method_title(method)}:\nevidence for {word}")
        for head in heads:
            for kind in kinds:
                result = by_head.get(head.name)  # None: this head has no such target
                tile, caption = (blank, "") if result is None else _tile(kind, image, result, i, head, shares)
                tiles.append(tile)
                captions.append(caption)
    warned = {name: r.warnings[0] for (name, _), by_head in maps.items() for r in by_head.values() if r.warnings}
    title = ["Colours are relative to the largest value of each map, which stands above it"]
    title += [fill(f"{method_title(name)}: {warning}", 90) for name, warning in warned.items()]
    columns = 1 + len(heads) * len(kinds)
    return plots.images(np.stack(tiles), captions, "\n".join(title), columns=columns, picture_width=1.7)


def _tile(
    kind: str, image: plots.Array, result: Attribution, i: int, head: Head, shares: Shares
) -> tuple[plots.Array, str]:
    values, target = result.maps[i].numpy(), int(result.targets[i])
    if kind == "overlay":
        return plots.overlay(image, values), "over the image"
    most = float(np.abs(values).max())
    answer = f"{head.name}: {head.classes[target]} ({percent(shares[head.name][i, target].item())})"
    return plots.heat(values), f"{answer}\n{f'largest {most:.3g}' if most else 'zero everywhere'}"


def kernels_figure(name: str, weights: Tensor) -> plots.Figure:
    """Draw the learned kernels (filters, C, k, k) of the first layer; mid-grey is 0."""
    most = weights.abs().max().clamp(min=1e-12)
    title = f"{name}: the learned kernels (mid-grey is 0, black and white are ±{most:.3g})"
    pixels = (weights / most + 1) * 127.5
    return plots.small_images(pixels.numpy(), [str(k) for k in range(len(weights))], title)
