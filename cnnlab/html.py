"""A run's page: one HTML file that carries its pictures and opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from PIL import Image

from cnnlab.log import percent


def render(template: str, templates: Path | None = None, **content: Any) -> str:
    """Return the HTML of the `template` in the folder `templates` or in `cnnlab/templates`. All content is escaped."""
    loaders: list[BaseLoader] = [FileSystemLoader(templates)] if templates else []
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("cnnlab")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = _embed
    environment.filters["percent"] = percent
    environment.filters["pluralize"] = pluralize
    return environment.get_template(template).render(**content)


WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def pluralize(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "one head", "two heads", "24,000 images"."""
    said = WORDS[number] if number < len(WORDS) else f"{number:,}"
    return f"{said} {one if number == 1 else many or one + 's'}"


def join_words(words: Sequence[str]) -> str:
    """Words with commas, and `and` before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _embed(picture: Path) -> str:
    """A PNG as a data URI, in 256 colours, which halves a page and is not seen."""
    small = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
