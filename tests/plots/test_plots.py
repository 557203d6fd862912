"""The pictures that carry meaning in their colours and order, and the words on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab import plots
from cnnlab.interpret.attribution import IMAGENET_MEAN, IMAGENET_STD, Attribution, displayable
from cnnlab.plots.charts import _digits
from cnnlab.plots.style import line_styles
from cnnlab.plots.tables import _cells
from cnnlab.reporting.html import render
from cnnlab.utils.console import percent
from tests.conftest import HEADS

PARTS = [(head.name, head.classes) for head in HEADS]


def test_one_mistake_in_a_thousand_is_seen() -> None:
    cells = _cells(np.array([[999, 1], [0, 1000]]))
    assert np.allclose(cells[1, 0], 1)  # none: white
    assert cells[0, 1].min() < 0.8  # one: orange
    assert cells[0, 1][0] > cells[0, 1][2] + 0.15
    assert cells[1, 1][2] > cells[1, 1][0]  # right: a bluish grey
    assert _cells(np.array([[0, 1], [0, 1]]))[0, 1].min() < cells[0, 1].min() - 0.5  # all: full orange


def test_accuracies_are_spaced_by_their_errors() -> None:
    assert _digits(np.array([0.0, 0.9, 0.99, 0.9999, 1.0])) == pytest.approx([0, 1, 2, 4, 5])


def test_heat_is_black_at_zero_and_signed_where_there_are_signs() -> None:
    positive = plots.heat(np.array([[0.0, 2.0]]))
    assert positive.shape == (3, 1, 2)
    assert positive[:, 0, 0].max() < 5
    assert positive[:, 0, 1].min() > 100
    signed = plots.heat(np.array([[-1.0, 0.0, 1.0]]))
    assert signed[2, 0, 0] > signed[0, 0, 0]  # against: blue
    assert (signed[:, 0, 1] == 255).all()
    assert signed[0, 0, 2] > signed[2, 0, 2]  # for: orange
    assert plots.heat(np.zeros((2, 2))).max() < 5


def test_an_overlay_keeps_the_picture_where_there_is_no_evidence() -> None:
    picture = np.array([[[200, 100]], [[0, 100]], [[100, 100]]], np.uint8)
    values = np.array([[0.0, 1.0]])
    over = plots.overlay(picture, values)
    assert over[:, 0, 0].tolist() == [200, 0, 100]
    strongest = 0.2 * 100 + 0.8 * plots.heat(values)[:, 0, 1].astype(float)
    assert over[:, 0, 1].tolist() == pytest.approx(strongest.tolist(), abs=1)


def test_pictures_are_written_whatever_their_number(tmp_path: Path) -> None:
    for count in (1, 7):
        figure = plots.images(np.zeros((count, 1, 28, 28), np.uint8), ["a"] * count, "title")
        plots.save(figure, tmp_path / f"{count}.png")
        assert (tmp_path / f"{count}.png").stat().st_size > 1000


def test_a_percentage_never_rounds_up_to_perfection() -> None:
    assert percent(0.99996) == "99.99 %"
    assert percent(1.0) == percent(1 - 2**-23) == "100.00 %"  # a float32 mean of ones
    assert percent(0.57) == "57.00 %"


def test_names_with_html_in_them_are_shown_not_run(tmp_path: Path) -> None:
    file = tmp_path / "architecture.png"
    Image.new("RGB", (8, 8)).save(file)
    manifest = {"title": "<script>alert(1)</script>", "run": "r", "made": "m"}
    settings = {"settings": {"ascent": {"steps": 1, "bounded": True}}}
    rest = {
        "mistakes": "</p><script>alert(2)</script>",
        "ranks": [],
        "viewer": {"truths": {}, "names": ["</script><script>alert(3)"]},
    }
    html = render(
        "explanation.html",
        manifest=manifest | settings,
        heads=[],
        inputs=[],
        architecture=file,
        model="</pre><script>alert(4)</script>",
        layers=[],
        filters={},
        visualised=True,
        warnings=[],
        audit="",
        **rest,
    )
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html


def test_no_curve_is_left_out_however_many_heads_there_are() -> None:
    names = [f"head {number}" for number in range(9)]
    lines = {name: {"train": [0.5, 0.6], "val": [0.4, 0.7]} for name in names}
    for axes in plots.curves(lines, lines, [0.1, 0.01]).axes[:2]:
        assert len(axes.lines) == 18
        styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
        assert len(styles) == 18
    by_epoch = {name: [0.1, 0.2] for name in names}
    for figure in (plots.by_epoch(by_epoch, "y"), plots.by_epoch(by_epoch, "y", logarithmic=True)):
        assert len(figure.axes[0].lines) == 9


def test_a_name_with_a_formula_in_it_is_drawn(tmp_path: Path) -> None:
    picture = np.zeros((1, 1, 28, 28), np.uint8)
    plots.save(plots.images(picture, [r"$\frac{"], r"$x_{$"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_labels_of_a_logarithmic_axis_are_numbers(tmp_path: Path) -> None:
    values = {"length": {"train": [1.0, 0.1, 0.001], "val": [0.9, 0.05, 0.002]}}
    figures = (
        plots.curves(values, values, [0.1, 0.01, 0.001]),
        plots.by_epoch({"length": [1.0, 20.0]}, "y", logarithmic=True),
    )
    for figure in figures:
        plots.save(figure, tmp_path / "a.png")  # labels are made when it is drawn
        labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels(which="both")]
        assert labels
        assert not any("$" in label for label in labels), labels


def test_no_two_curves_of_a_picture_have_one_colour() -> None:
    values = {"train": [0.5, 0.6], "val": [0.4, 0.7]}
    heads = dict.fromkeys(("length", "width", "angle", "colour"), values)
    figure = plots.curves({"weighted sum": values, **heads}, {"all heads right": values, **heads}, [1e-3, 1e-4])
    loss_axes, accuracy_axes, _ = figure.axes
    colours = {}
    for axes, whole in ((loss_axes, "weighted sum"), (accuracy_axes, "all heads right")):
        for line, name in zip(axes.lines, [name for name in (whole, *heads) for _ in values], strict=True):
            assert colours.setdefault(name, line.get_color()) == line.get_color()  # a head has one in both panels
    assert len(set(colours.values())) == 6
    styles = [colour for colour, _ in islice(line_styles(), 8)]  # six methods, a random and an edge map
    assert len(set(styles)) == 8


@pytest.mark.parametrize(
    "normalise",
    [
        lambda image: image,
        lambda image: image * 2 - 1,
        lambda image: (image - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None],
    ],
)
def test_normalised_images_are_shown_in_their_colours(normalise: Callable[[torch.Tensor], torch.Tensor]) -> None:
    image = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0] = torch.tensor([26, 0, 0]) / 255
    image[:, 0, 1] = 1
    shown, how = displayable(normalise(image)[None])
    torch.testing.assert_close(shown[0], image, rtol=0, atol=1e-5)
    scaled, stretched = displayable(image[None] * 1000 - 300)
    assert (how == "") == torch.equal(normalise(image), image)
    assert stretched.startswith("colours: stretched")
    assert (scaled.min(), scaled.max()) == (0, 1)
    shown = Attribution(torch.rand(1, 6, 6), normalise(image)[None], torch.tensor([0]), "saliency").plot()
    picture = shown.axes[0].get_images()[0].get_array()
    assert [26, 0, 0] in np.asarray(picture).reshape(-1, 3)[:, :3].tolist()


def test_a_loss_below_zero_is_drawn() -> None:
    """As of weighting=uncertainty, where heads that are sure count below 0; a logarithmic axis would hide them."""
    for losses, scale in (([0.5, 0.1], "log"), ([0.5, -0.2], "linear")):
        curves = {"weighted sum": {"val": losses}}
        assert plots.curves(curves, curves, [0.1, 0.1]).axes[0].get_yscale() == scale


def test_a_picture_knows_its_tiles(tmp_path: Path) -> None:
    """Every tile holds its own picture, and those of a chart its axes and legend."""
    greys = np.array([10, 130, 250], np.uint8)
    pictures = np.broadcast_to(greys[:, None, None, None], (3, 1, 28, 28))
    plots.save(plots.images(pictures, ["a", "b", "c"], "three greys", columns=2), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        rows = json.loads(image.info["Tiles"])
        assert image.info["Title"] == "three greys"
        middles = [[((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in row] for row in rows]
        inches = 110
        levels = [
            [image.convert("L").getpixel((round(x * inches), round(y * inches))) for x, y in row] for row in middles
        ]
    assert levels == [[10, 130], [250]]
    plots.save(plots.by_epoch({"angle": [0.2, 0.5]}, "accuracy"), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        (row,) = json.loads(image.info["Tiles"])
        assert len(row) == 2
        assert 0 <= row[0][0] < row[0][2] <= row[1][0] + 0.1 < row[1][2] <= image.width / inches + 0.1
