"""A run's page: one HTML file that carries its pictures and opens offline."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: Any) -> str:
    """HTML of `cnnlab/templates/<template>`. All content is escaped."""
    environment = Environment(
        loader=PackageLoader("cnnlab"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["embed"] = _embed
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**content)


def percent(share: float) -> str:
    """A share as a percentage that is never rounded up to 100: 0.99996 is "99.99 %". Float32's error is."""
    return f"{int(share * 1e4 + 0.01) / 100:.2f} %"


def _embed(picture: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
