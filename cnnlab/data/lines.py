"""Straight lines on black, 28 x 28 x 3: what a line is, how it is drawn, and leak-free splits of them.

A line is a class (length, width, angle, colour) and a centre. Both reports, section "line dataset";
classes are numbered in the order of the file names `length_width_angle_colour_id`.
"""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnlab import IMAGE_SIZE, UserError
from cnnlab.data.splits import COUNT_CHUNK, LabData, Split
from cnnlab.heads import Head

LENGTHS = {"short": 7.0, "long": 15.0}  # pixels
WIDTHS = {"thin": 1.0, "thick": 3.0}  # pixels
ANGLES = {f"{degrees}°": math.radians(degrees) for degrees in range(0, 180, 15)}  # counter-clockwise
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}  # RGB

HEADS = (
    Head("length", tuple(LENGTHS)),
    Head("width", tuple(WIDTHS)),
    Head("angle", tuple(ANGLES)),
    Head("colour", tuple(COLOURS)),
)
SHAPE = tuple(len(head.classes) for head in HEADS)
CLASSES = math.prod(SHAPE)

_LENGTH = torch.tensor(list(LENGTHS.values()))
_WIDTH = torch.tensor(list(WIDTHS.values()))
_COS = torch.tensor([math.cos(angle) for angle in ANGLES.values()])
_SIN = torch.tensor([math.sin(angle) for angle in ANGLES.values()])
_COLOUR = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)


def attributes_of(classes: Tensor) -> dict[str, Tensor]:
    """{attribute: int64 (B,)} of class numbers int64 (B,) in [0, 96)."""
    parts = torch.unravel_index(classes, SHAPE)
    return {head.name: part for head, part in zip(HEADS, parts, strict=True)}


def class_of(attributes: dict[str, Tensor]) -> Tensor:
    """Class numbers int64 (B,) in [0, 96) of {attribute: int64 (B,)}; the inverse of `attributes_of`."""
    number = torch.zeros_like(attributes[HEADS[0].name])
    for head in HEADS:
        number = number * len(head.classes) + attributes[head.name]
    return number


def file_name(class_number: int, number: int) -> str:
    """The problem statement's name of an image: `1_1_9_0_3` is long, thick, 135°, red, number 3."""
    values = [value.item() for value in attributes_of(torch.tensor([class_number])).values()]
    return "_".join(str(value) for value in (*values, number))


def parse_file_name(name: str) -> tuple[int, int]:
    """(class number, number) of a name like `1_1_9_0_3`; the inverse of `file_name`.

    Raises `UserError` where the name is not of this form.
    """
    fields = name.split("_")
    limits = (*SHAPE, math.inf)
    if len(fields) != len(limits) or not all(re.fullmatch(r"\d+", field) for field in fields):
        raise UserError(f"'{name}' is not of the form length_width_angle_colour_id, like 1_1_9_0_3")
    values = [int(field) for field in fields]
    for head, value in zip(HEADS, values, strict=False):
        if value >= len(head.classes):
            raise UserError(f"'{name}': {head.name} {value} is not in 0..{len(head.classes) - 1}")
    attributes = {head.name: torch.tensor([value]) for head, value in zip(HEADS, values, strict=False)}
    return int(class_of(attributes)), values[-1]


def centre_bounds(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest (x, y) in pixels, float32 (B, 2) each, of a centre whose whole line is inside."""
    at = attributes_of(classes)
    cos, sin = _COS[at["angle"]].abs(), _SIN[at["angle"]].abs()
    length, width = _LENGTH[at["length"]], _WIDTH[at["width"]]
    half = torch.stack([length * cos + width * sin, length * sin + width * cos], dim=1) / 2
    return half, IMAGE_SIZE - half


def coverage(classes: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """How much of each pixel the line covers, float32 (B, 28, 28) in [0, 1].

    `classes` int64 (B,); `centres` float32 (B, 2), (x, y) in pixels from the top left corner, y down.
    Anti-aliased by the signed distance of the pixel's centre to the box's edges, along and across the
    line: coverage falls from 1 to 0 over one pixel, and is the exact area for an upright line. Without
    `antialias` a pixel is on where its centre is in the box.
    """
    at = attributes_of(classes)
    cos, sin = _COS[at["angle"]].view(-1, 1, 1), _SIN[at["angle"]].view(-1, 1, 1)
    pixels = torch.arange(IMAGE_SIZE) + 0.5
    x = pixels.view(1, 1, -1) - centres[:, 0].view(-1, 1, 1)  # (B, 1, 28)
    y = centres[:, 1].view(-1, 1, 1) - pixels.view(1, -1, 1)  # (B, 28, 1), up
    inside_along = _LENGTH[at["length"]].view(-1, 1, 1) / 2 - (x * cos + y * sin).abs()  # (B, 28, 28)
    inside_across = _WIDTH[at["width"]].view(-1, 1, 1) / 2 - (y * cos - x * sin).abs()
    if not antialias:
        return ((inside_along >= 0) & (inside_across >= 0)).float()
    return (inside_along + 0.5).clamp_(0, 1) * (inside_across + 0.5).clamp_(0, 1)


def _grey(classes: Tensor, centres: Tensor, antialias: bool) -> Tensor:
    """`coverage` in whole steps of 1/255, as float32 (B, 28, 28) in [0, 255]."""
    return coverage(classes, centres, antialias).mul_(255).round_()


def render(classes: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The 8-bit images, uint8 (B, 3, 28, 28), of `classes` int64 (B,) at `centres` float32 (B, 2)."""
    grey = _grey(classes, centres, antialias).to(torch.uint8)
    lit = _COLOUR[attributes_of(classes)["colour"]] // 255
    return grey[:, None] * lit[:, :, None, None]


def line_mask(classes: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The pixels that the line lights in the 8-bit image, bool (B, 28, 28)."""
    return _grey(classes, centres, antialias) > 0


def counterfactual_mask(attribute: str, classes: Tensor, centres: Tensor, antialias: bool = True) -> Tensor:
    """The pixels of the 8-bit image, bool (B, 28, 28), that change when the same line is drawn with another
    value of one attribute: what carries the answer to that question, black pixels among it.

    Of the angles only the two neighbours count, 15° to either side: the union over all angles is a disc.
    """
    at = attributes_of(classes)
    values = SHAPE[[head.name for head in HEADS].index(attribute)]
    image = render(classes, centres, antialias)
    changed = torch.zeros_like(image[:, 0], dtype=torch.bool)
    for step in {1, values - 1}:
        other = class_of({**at, attribute: (at[attribute] + step) % values})
        changed |= (render(other, centres, antialias) != image).any(dim=1)
    return changed


# --- Which centres: a pure function of (seed, split, index), and no image in two splits ---------------
#
# A hash of an image's grey pixels says to which split the image belongs, and a split keeps of the
# uniformly drawn centres only those whose image is its own. So two splits can never share an image:
# not with hard pixels, where a class has only a few hundred images, and not with ever fresh ones.

_SHARES = {"train": range(0, 5), "val": range(5, 6), "test": range(6, 8)}  # of 8


def _hash(*words: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """Independent uniform 64-bit numbers, one for each row of `words` (splitmix64, Steele et al. 2014)."""
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


# Whole numbers below 2**32: a sum of 784 products with bytes stays exact in float64.
_WEIGHTS = torch.from_numpy((_hash(np.arange(IMAGE_SIZE**2, dtype=np.uint64)) >> 32).astype(np.float64))


def _share(grey: Tensor) -> Tensor:
    """Which eighth of all images each of `grey` (B, 28, 28) falls in, int64 (B,) in [0, 8)."""
    sums = (grey.flatten(1).double() @ _WEIGHTS).numpy().astype(np.uint64)
    return torch.from_numpy((_hash(sums) >> 61).astype(np.int64))


def draw_centres(seed: int, split: str, indices: Tensor, antialias: bool = True) -> Tensor:
    """Centres float32 (B, 2) of the images `indices` int64 (B,) of a split ("train", "val", "test").

    Image i is of class i mod 96. Its centre is uniform over all places where the whole line is
    inside and whose image belongs to the split.
    """
    chunks = indices.split(COUNT_CHUNK)
    return torch.cat([_draw(seed, split, chunk, antialias) for chunk in chunks])


def _draw(seed: int, split: str, indices: Tensor, antialias: bool) -> Tensor:
    classes = indices % CLASSES
    low, high = centre_bounds(classes)
    centres = torch.empty(len(indices), 2)
    share = _SHARES[split]
    rows, attempt = torch.arange(len(indices)), 0
    while len(rows):
        key = _hash(seed, share.start, indices[rows].numpy(), attempt)
        unit = np.stack([_hash(key, axis) >> 40 for axis in (0, 1)], axis=1).astype(np.float32) / 2**24
        tried = low[rows] + torch.from_numpy(unit) * (high[rows] - low[rows])
        eighth = _share(_grey(classes[rows], tried, antialias))
        ours = (eighth >= share.start) & (eighth < share.stop)
        centres[rows[ours]] = tried[ours]
        rows, attempt = rows[~ours], attempt + 1
    return centres


class LineSplit(Split):
    """One split: a table of centres, pixels on demand. `fresh` draws for any index, without a table."""

    def __init__(self, seed: int, name: str, per_class: int, task: str, antialias: bool, fresh: bool) -> None:
        self.seed, self.name, self.size = seed, name, per_class * CLASSES
        self.task, self.antialias = task, antialias
        every = torch.arange(self.size)
        self.centres = None if fresh else draw_centres(seed, name, every, antialias)

    def __len__(self) -> int:
        return self.size

    def centres_of(self, indices: Tensor) -> Tensor:
        """The centres float32 (B, 2) of `indices` int64 (B,)."""
        if self.centres is None:
            return draw_centres(self.seed, self.name, indices, self.antialias)
        return self.centres[indices]

    def images(self, indices: Tensor) -> Tensor:
        return render(indices % CLASSES, self.centres_of(indices), self.antialias)

    def truths(self, indices: Tensor, head: Head) -> dict[str, Tensor]:
        """The true pixels of a head's answer, bool (B, 28, 28) each: the "line", and the "counterfactual" of
        the head's attribute (of all attributes, where the head is their product)."""
        classes, centres = indices % CLASSES, self.centres_of(indices)
        masks = [
            counterfactual_mask(part.name, classes, centres, self.antialias) for part in head.parts or (head,)
        ]
        line = line_mask(classes, centres, self.antialias)
        return {"line": line, "counterfactual": torch.stack(masks).any(dim=0)}

    def targets(self, indices: Tensor) -> dict[str, Tensor]:
        classes = indices % CLASSES
        return attributes_of(classes) if self.task == "attributes" else {"class": classes}


def _class_names() -> tuple[str, ...]:
    at = attributes_of(torch.arange(CLASSES))
    return tuple(" ".join(head.classes[at[head.name][i]] for head in HEADS) for i in range(CLASSES))


TASKS = {"attributes": HEADS, "class": (Head("class", _class_names(), parts=HEADS),)}


class LineData(LabData):
    """Lines, drawn batch by batch. `task` is "attributes" (four heads) or "class" (one head of 96)."""

    in_channels = 3

    def __init__(
        self,
        seed: int = 0,
        task: str = "attributes",
        train_per_class: int = 750,
        val_per_class: int = 100,
        test_per_class: int = 250,
        batch_size: int = 256,
        eval_batch_size: int = 500,
        antialias: bool = True,
        fresh: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(seed, batch_size, eval_batch_size, num_workers)
        if task not in TASKS:
            raise UserError(f"data.task={task}: choose one of {', '.join(TASKS)}")
        self.per_class = dict(zip(self.names, (train_per_class, val_per_class, test_per_class), strict=True))
        for name, size in self.per_class.items():
            if size < (0 if name == "val" else 1):
                raise UserError(f"data.{name}_per_class={size} is too small")
        self.heads, self.task, self.antialias, self.fresh = TASKS[task], task, antialias, fresh
        self.splits = {}

    def setup(self, stage: str | None = None) -> None:
        for name, size in self.per_class.items():
            if name not in self.splits:
                fresh = self.fresh and name == "train"
                self.splits[name] = LineSplit(self.seed, name, size, self.task, self.antialias, fresh)
