"""The template engine of all pages: HTML files that contain their pictures and open offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from PIL import Image

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
    environment.filters["embed"] = _embed
    environment.filters["percent"] = percent
    environment.filters["pluralize"] = pluralize
    return environment.get_template(template).render(**content)


def pluralize(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 head", "24,000 images"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def join_words(words: Sequence[str]) -> str:
    """Return words with commas, and "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _embed(picture: Path) -> str:
    """Return a PNG as a data URI, in 256 colours, which halves the page."""
    small = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(small, "png")
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
