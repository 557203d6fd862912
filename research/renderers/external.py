"""Lines as other programs draw them: Pillow, OpenCV and matplotlib. Never trained on, only tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from cnnlab.data.rendering import IMAGE_SIZE, Lines

Grey = NDArray[np.uint8]  # (28, 28)
Point = tuple[float, float]  # (x, y) in pixels from the top left corner, y down
Draw = Callable[[Point, Point, int], Grey]  # from the two end points, and the width in pixels

FINE = 8  # how many times finer Pillow draws before it averages
_CV2_BITS = 8  # of a fraction in OpenCV's coordinates


def _ends(lines: Lines, centres: Tensor, shorter: Tensor | float) -> Iterator[tuple[Point, Point, int]]:
    """End points and width of each line, moved towards the centre until the line is `shorter` pixels shorter."""
    reach = torch.stack([lines.cos, -lines.sin], dim=1) * ((lines.length - shorter) / 2)[:, None]
    ends = torch.cat([centres - reach, centres + reach], dim=1).tolist()
    for (x0, y0, x1, y1), width in zip(ends, lines.width.tolist(), strict=True):
        yield (x0, y0), (x1, y1), round(width)


def pillow(first: Point, last: Point, width: int) -> Grey:
    """ImageDraw.line: hard pixels between whole-numbered end points, both included."""
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    ImageDraw.Draw(image).line([first, last], fill=255, width=width)
    return np.asarray(image)


def pillow_supersampled(first: Point, last: Point, width: int) -> Grey:
    """ImageDraw.polygon, 8 times as large, averaged down; it draws the pixels of its outline, too, and is told a
    polygon that is smaller by one."""
    (x0, y0), (x1, y1) = first, last
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    half = (width - 1 / FINE) / 2
    across = (y1 - y0) / length * half, -(x1 - x0) / length * half
    corners = [(x + side * across[0], y + side * across[1]) for x, y, side in
               ((x0, y0, 1), (x1, y1, 1), (x1, y1, -1), (x0, y0, -1))]  # fmt: skip
    large = Image.new("L", (IMAGE_SIZE * FINE, IMAGE_SIZE * FINE))
    ImageDraw.Draw(large).polygon([(x * FINE - 0.5, y * FINE - 0.5) for x, y in corners], fill=255)
    return np.asarray(large.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def _opencv(smooth: bool) -> Draw:
    def draw(first: Point, last: Point, width: int) -> Grey:
        import cv2

        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        # OpenCV counts from the middle of the first pixel.
        ends = [tuple(round((at - 0.5) * 2**_CV2_BITS) for at in point) for point in (first, last)]
        cv2.line(image, ends[0], ends[1], 255, width, cv2.LINE_AA if smooth else cv2.LINE_8, _CV2_BITS)
        return image

    return draw


def matplotlib(first: Point, last: Point, width: int) -> Grey:
    """Agg, anti-aliased, with butt caps, as matplotlib draws a Line2D."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    agg = RendererAgg(IMAGE_SIZE, IMAGE_SIZE, 72)
    context = agg.new_gc()
    context.set_linewidth(width)
    context.set_capstyle("butt")
    context.set_snap(False)
    context.set_foreground((1.0, 1.0, 1.0))
    up = Affine2D().scale(1, -1).translate(0, IMAGE_SIZE)  # its y goes up
    agg.draw_path(context, Path([first, last]), up)
    return np.asarray(agg.buffer_rgba())[:, :, 3]


def _plain(lines: Lines) -> float:
    return 1.0  # both end pixels are drawn: a line from pixel 3 to 9 has 7


def _outline(lines: Lines) -> float:
    return 1 / FINE


def _nothing(lines: Lines) -> float:
    return 0.0


def _caps(lines: Lines) -> Tensor:
    return lines.width  # OpenCV ends a line with half a disc


# What draws, and how much shorter it is told to draw.
RENDERERS: dict[str, tuple[Draw, Callable[[Lines], Tensor | float]]] = {
    "Pillow, supersampled": (pillow_supersampled, _outline),
    "matplotlib": (matplotlib, _nothing),
    "Pillow": (pillow, _plain),
    "Pillow, literal ends": (pillow, _nothing),
    "OpenCV": (_opencv(False), _caps),
    "OpenCV, literal ends": (_opencv(False), _nothing),
    "OpenCV, anti-aliased": (_opencv(True), _caps),
    "OpenCV, anti-aliased, literal ends": (_opencv(True), _nothing),
}


def available() -> list[str]:
    """Return the renderers that are installed."""
    try:
        import cv2  # noqa: F401
    except ImportError:
        opencv = False
    else:
        opencv = True
    return [name for name in RENDERERS if opencv or not name.startswith("OpenCV")]


def external_coverage(name: str, lines: Lines, centres: Tensor) -> Tensor:
    """How bright each pixel is, float32 (B, 28, 28) in [0, 1], as one of `RENDERERS` draws it; `centres` float32
    (B, 2)."""
    draw, shorter = RENDERERS[name]
    grey = np.stack([draw(*ends) for ends in _ends(lines, centres, shorter(lines))])
    return torch.from_numpy(grey).float() / 255
