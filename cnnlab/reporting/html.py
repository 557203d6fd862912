"""The template engine of all pages: HTML files that contain their pictures and open offline."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from PIL import Image

from cnnlab.plots.style import DPI
from cnnlab.utils.console import percent


def render(template: str, templates: Path | None = None, **content: Any) -> str:
    """Return a page from a template in the folder `templates`, or in `cnnlab/reporting/templates`. Content is
    escaped."""
    loaders: list[BaseLoader] = [FileSystemLoader(templates)] if templates else []
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("cnnlab.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tiles"] = _tiles
    environment.filters["percent"] = percent
    environment.filters["pluralize"] = pluralize
    return environment.get_template(template).render(**content)


def pluralize(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 head", "24,000 images"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def join_words(words: Sequence[str]) -> str:
    """Return words with commas, and "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class Tile(NamedTuple):
    """A picture as a data URI, and its width in pixels of a page."""

    uri: str
    width: int


def _tiles(picture: Path) -> tuple[str, list[list[Tile]]]:
    """Return the title of a PNG and rows of its tiles (see `plots.save`); without tiles the whole picture is one."""
    with Image.open(picture) as image:
        whole = [[(0.0, 0.0, image.width / DPI, image.height / DPI)]]
        rows = json.loads(image.info.get("Tiles", "[]")) or whole
        pixels = image.convert("RGB")
        cut = [[pixels.crop(tuple(round(DPI * edge) for edge in box)) for box in row] for row in rows]  # type: ignore[arg-type]
        tiles = [[Tile(_embed(tile), 72 * tile.width // DPI) for tile in row] for row in cut]
        return image.info.get("Title", ""), tiles


def _embed(image: Image.Image) -> str:
    """Return an image as a data URI, in 256 colours, which halves the page."""
    small = io.BytesIO()
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(small, "png")
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
