"""One explanation of one run: what is asked is checked, computed, drawn, and written to a new folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from cnnlab import UserError
from cnnlab.cli import words
from cnnlab.data.splits import LabData
from cnnlab.explain import pictures
from cnnlab.explain.activations import activations
from cnnlab.explain.filters import Ascent, class_filters, layer_filters
from cnnlab.explain.heatmaps import METHODS, heatmaps
from cnnlab.explain.probe import layer_named, leaves, options, untouched
from cnnlab.explain.subjects import Subjects, from_files, from_split, pick
from cnnlab.files import new_folder, write_whole
from cnnlab.hardware import keep_memory
from cnnlab.heads import Head
from cnnlab.nets import Net
from cnnlab.runs import Run, newest, versions

PICKED = 6  # images explained where none is asked for
SAMPLE = 500  # test images on which dead and saturated channels are judged
MOST_CHANNELS = 64  # of a layer that are drawn
SHOWN_TYPES = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)


def explain_run(cfg: DictConfig) -> Path:
    """Explain what `cfg` (conf/explain.yaml) asks for; returns the page's path.

    Raises `UserError` for what the user can mend, before anything is written.
    """
    console = Console()
    keep_memory()
    run = Run(str(cfg.run)) if cfg.run else newest(Path("outputs"))
    data = run.data("test")
    return _Explanation(cfg, console, run, data, run.net(data)).write()


class _Explanation:
    """An explanation while it is made."""

    def __init__(self, cfg: DictConfig, console: Console, run: Run, data: LabData, net: Net) -> None:
        self.cfg, self.console, self.run, self.data, self.net = cfg, console, run, data, net
        self.heads = self._heads()
        self.methods = words(cfg.methods)
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"there is no method '{method}'{options(method, METHODS)}")
        self.layers = self._layers()
        self.ascent = Ascent(**OmegaConf.to_container(cfg.filters))  # type: ignore[arg-type]
        self.subjects = self._subjects()
        self.images = self.subjects.images.float() / 255
        with untouched(net), torch.no_grad():
            logits = net(self.images)
        self.probabilities = {head.name: head.probabilities(logits[head.name]) for head in data.heads}
        self.aims = self._aims()
        self.raw: dict[str, Tensor] = {"images": self.subjects.images}

    def _heads(self) -> list[Head]:
        every = {head.name: head for head in self.data.heads}
        names = words(self.cfg.heads) or list(every)
        for name in names:
            if name not in every:
                raise UserError(f"there is no head '{name}'{options(name, every)}")
        return [every[name] for name in names]

    def _layers(self) -> list[str]:
        """The layers asked for; else convolutions, activations and poolings of the stem and of the heads."""
        asked = words(self.cfg.layers)
        for name in asked:
            layer_named(self.net, name)
        ours = {"stem", *(head.name for head in self.heads)}
        return asked or [
            name
            for name, layer in leaves(self.net).items()
            if isinstance(layer, SHOWN_TYPES) and name.split(".")[0] in ours
        ]

    def _subjects(self) -> Subjects:
        split = self.data.splits["test"]
        if self.cfg.image is not None:
            if self.cfg.indices is not None:
                raise UserError("give image or indices, not both")
            return from_files(
                [Path(word).expanduser() for word in words(self.cfg.image)], self.data.in_channels
            )
        if self.cfg.indices is None:
            return from_split(split, pick(self.net, self.data.heads, split, PICKED))
        indices = self.cfg.indices if isinstance(self.cfg.indices, ListConfig) else [self.cfg.indices]
        if not indices or not all(
            isinstance(index, int) and not isinstance(index, bool) for index in indices
        ):
            raise UserError(f"indices={self.cfg.indices} are not whole numbers")
        return from_split(split, list(indices))

    def _aims(self) -> list[tuple[Head, str, Tensor]]:
        """(head, word, class of each image int64 (N,)) for every head and each of `targets` that it knows."""
        aims = []
        for word in words(self.cfg.targets):
            places = {head.name: _place(head, word) for head in self.heads}
            common = word in ("predicted", "true")
            knowing = [head for head in self.heads if common or places[head.name] is not None]
            if not knowing:
                known = ["predicted", "true", *(name for head in self.heads for name in head.classes)]
                raise UserError(f"there is no target '{word}'{options(word, known)}")
            if word == "true" and self.subjects.truth is None:
                raise UserError("targets=true: the true class of an image from outside is not known")
            for head in knowing:
                if word == "predicted":
                    target = self.probabilities[head.name].argmax(dim=1)
                elif word == "true":
                    assert self.subjects.truth is not None
                    target = self.subjects.truth[head.name]
                else:
                    place = places[head.name]
                    assert place is not None
                    target = torch.full((len(self.images),), place)
                aims.append((head, word, target))
        return aims

    def write(self) -> Path:
        """Compute, draw and write everything; the manifest last."""
        folder = new_folder(
            Path(str(self.cfg.out)).expanduser() if self.cfg.out else self.run.path / "explain"
        )
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task("heatmaps")
            found = self._heatmaps()
            bar.update(task, description="activations")
            layers = self._activations(folder)
            bar.update(task, description="filters, by gradient ascent")
            filters = self._filters(folder, layers)
            bar.update(task, description="page")
            shown = pictures.subjects(
                folder, self.subjects, self.data.heads, self.heads, self.probabilities, found
            )
            np.savez_compressed(folder / "maps.npz", **self._arrays())
            manifest = self._manifest()
            pictures.page(folder, manifest, shown, layers, filters)
            write_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        self.console.print(f"page  {folder / 'index.html'}", highlight=False, soft_wrap=True)
        return folder / "index.html"

    def _heatmaps(self) -> list[pictures.Evidence]:
        found = []
        for head, word, target in self.aims:
            for method in self.methods:
                result = heatmaps(self.net, head, method, self.images, target)
                key = f"{method}/{head.name}/{word}"
                self.raw[key] = result.maps
                self.raw[f"{key}/target"] = target
                if result.coarse is not None:
                    self.raw[f"{key}/{result.layer}"] = result.coarse
                found.append(pictures.Evidence(head, word, target, method, result))
        return found

    def _activations(self, folder: Path) -> list[pictures.LayerPage]:
        split = self.data.splits["test"]
        sample = split.inputs(torch.arange(min(SAMPLE, len(split))))
        pages = []
        for answer in activations(self.net, self.layers, self.images, sample):
            channels = answer.most_active(MOST_CHANNELS)
            self.raw[f"activations/{answer.layer}"] = answer.maps[:, channels]
            self.raw[f"activations/{answer.layer}/channels"] = channels
            pages.append(pictures.layer(folder, answer, channels, self.subjects, len(sample)))
        return pages

    def _filters(self, folder: Path, layers: Sequence[pictures.LayerPage]) -> list[Path]:
        """Filters of the convolutions and dense layers among `layers`, and of every head's classes."""
        drawn = [pictures.kernels(folder, *_first_convolution(self.net))]
        for page in layers:
            if isinstance(layer_named(self.net, page.name), nn.Conv2d | nn.Linear):
                result = layer_filters(self.net, page.name, page.channels, self.data.in_channels, self.ascent)
                names = [f"{number}" for number in page.channels.tolist()]
                self.raw[f"filters/{page.name}"] = result.images
                drawn.append(pictures.filters(folder, page.name, names, result, self.ascent))
        for head in self.heads:
            result = class_filters(self.net, head, self.data.in_channels, self.ascent)
            self.raw[f"filters/{head.name}"] = result.images
            drawn.append(pictures.filters(folder, head.name, list(head.classes), result, self.ascent))
        return drawn

    def _arrays(self) -> dict[str, Any]:
        return {name: value.numpy() for name, value in self.raw.items()}

    def _manifest(self) -> dict[str, Any]:
        return {
            "run": str(self.run.path),
            "experiment": self.run.config.experiment,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": OmegaConf.to_container(self.cfg, resolve=True),
            "images": self.subjects.names,
            "heads": [head.name for head in self.heads],
            "layers": self.layers,
            "methods": self.methods,
            "arrays": {name: list(value.shape) for name, value in self.raw.items()},
            "versions": versions(),
        }


def _first_convolution(net: nn.Module) -> tuple[str, Tensor]:
    """Name and kernels (filters, C, k, k) of the convolution that sees the image."""
    for name, layer in leaves(net).items():
        if isinstance(layer, nn.Conv2d):
            return name, layer.weight.detach()
    raise UserError("the network has no convolution")


def _place(head: Head, word: str) -> int | None:
    """The number of the class of that name; Hydra's command line cannot read a °, so it may be left out."""
    names = [name.rstrip("°") for name in head.classes]
    return names.index(word.rstrip("°")) if word.rstrip("°") in names else None
