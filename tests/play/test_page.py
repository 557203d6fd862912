"""Play in a real browser: what one moves, draws and paints is answered, and everything on the page works."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

import cnnlab
from cnnlab.data.line_scene import LineScene, draw
from cnnlab.plots import heat
from tests.browser import CHROMIUM, Browsed, browsed
from tests.conftest import in_process, run_train
from tests.play.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]

expect.set_options(timeout=100_000)
LEARNED = ("data.train_per_class=120", "data.val_per_class=4", "data.test_per_class=4", "trainer.max_epochs=3")
ANSWERED = "performance.getEntriesByName('answer').length"
CANVAS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run below `outputs` that has learned to read lines, most of the time."""
    return run_train(tmp_path_factory.mktemp("play") / "outputs" / "multihead", "experiment=multihead", *LEARNED)


@pytest.fixture(scope="module")
def server(learned: Path, digits: tuple[str, ...]) -> Iterator[Served]:
    run_train(learned.parent / "digits", "experiment=mnist_flat", *digits)
    server = Served(f"run={learned}", "port=0", folder=learned.parent.parent)
    yield server
    server.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browsed]:
    with browsed() as browser:
        yield browser


def answered(tab: Page, before: int = 0) -> int:
    """Wait for an answer, and until there is none on its way; how many there were."""
    for _ in range(1000):
        tab.wait_for_timeout(100)
        count = int(tab.evaluate(ANSWERED))
        if count > before and not tab.evaluate("document.body.dataset.asking"):
            return count
    pytest.fail("the page is not answered")


def set_slider(tab: Page, name: str, value: float) -> None:
    before = tab.evaluate(ANSWERED)
    tab.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )
    answered(tab, before)


def pixels(tab: Page, selector: str) -> torch.Tensor:
    """The pixels (H, W, 3) of a canvas."""
    canvas = tab.locator(selector).first
    height, width = canvas.evaluate("canvas => [canvas.height, canvas.width]")
    return torch.tensor(canvas.evaluate(CANVAS)).view(height, width, 4)[..., :3]


def test_a_slider_moves_the_angle_and_the_answer_with_it(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    answered(tab)
    set_slider(tab, "length", 15)
    set_slider(tab, "angle", 0)
    assert tab.locator(".card h3").nth(2).inner_text().startswith("angle: 0°")
    set_slider(tab, "angle", 45)
    assert tab.locator(".card h3").nth(2).inner_text().startswith("angle: 45°")
    assert tab.locator("#summary").text_content().split(", ")[2] == "45°"
    assert errors == []


def test_what_is_drawn_is_what_python_says(browser: Browsed, server: Served, learned: Path) -> None:
    tab, _ = browser.open(server.page)
    answered(tab)
    image = draw([LineScene(7, 1, 45, (255, 0, 0), 14.5, 14.5)])
    assert torch.equal(pixels(tab, "#image"), image[0].permute(1, 2, 0).long())
    run = cnnlab.load(learned)
    for place, head in enumerate(run.heads):
        card = f".card:nth-child({place + 1})"
        expected = torch.from_numpy(heat(run.attribute(image.float() / 255, head=head.name).maps[0].numpy()).copy())
        apart = (pixels(tab, f"{card} .maps canvas") - expected.permute(1, 2, 0).long()).abs()
        assert apart.max() <= 12  # of 255: two steps of the colour table, of 128
        said = run.predict(image.float() / 255)[head.name][0]
        assert tab.locator(f"{card} h3").inner_text().startswith(f"{head.name}: {said} ")
        red, green, _ = pixels(tab, f"{card} figure:nth-child(2) canvas").unbind(dim=-1)  # of an image in grey
        assert torch.equal(green - red > 80, LineScene(7, 1, 45, (255, 0, 0), 14.5, 14.5).truth([head.name]))


def test_the_line_is_dragged_and_moved_by_keys(browser: Browsed, server: Served) -> None:
    tab, _ = browser.open(server.page)
    count = answered(tab)

    def centre() -> list[float]:
        light = pixels(tab, "#image")[..., 0].double()
        return [float((light.sum(dim=axis) * (torch.arange(28) + 0.5)).sum() / light.sum()) for axis in (0, 1)]

    assert centre() == pytest.approx([14.5, 14.5], abs=0.1)
    box = tab.locator("#pad").bounding_box()
    assert box is not None
    scale = box["width"] / 28
    tab.mouse.move(box["x"] + 5 * scale, box["y"] + 5 * scale)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 8 * scale, box["y"] + 3 * scale, steps=4)
    tab.mouse.up()
    count = answered(tab, count)
    assert centre() == pytest.approx([17.5, 12.5], abs=0.1)
    tab.locator("#pad").focus()
    tab.keyboard.press("ArrowLeft")
    answered(tab, count)
    assert centre() == pytest.approx([17, 12.5], abs=0.1)


def test_a_digit_is_drawn_undone_and_read(browser: Browsed, server: Served, learned: Path) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    tab.locator("#run").select_option("digits")
    count = answered(tab, count)
    assert not tab.get_by_role("button", name="Line", exact=True).is_visible()
    tab.get_by_role("button", name="Draw").click()
    count = answered(tab, count)
    tab.locator("#ood", has_text="It is empty").wait_for()
    box = tab.locator("#pad").bounding_box()
    assert box is not None
    strokes = [[(4 / 28, 6.5 / 28), (24 / 28, 6.5 / 28)], [(0.5, 0.5), (0.5, 0.8)]]  # a 1 of this set, and more
    for stroke in strokes:
        for place, (x, y) in enumerate(stroke):
            tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if place == 0:
                tab.mouse.down()
        tab.mouse.up()
        count = answered(tab, count)
    both = pixels(tab, "#given canvas")
    tab.get_by_role("button", name="Undo").click()
    answered(tab, count)
    sheet = pixels(tab, "#sheet").byte().numpy()
    run = cnnlab.load(learned.parent / "digits")
    given = pixels(tab, "#given canvas")
    assert not torch.equal(given, both)
    assert torch.equal(given[..., 0], (run.inputs(sheet).images[0, 0] * 255).round().long())
    one = run.head("digit").classes[1]  # the set is read as if it were FashionMNIST, with its names
    assert run.predict(sheet)["digit"] == [one]
    assert tab.locator(".card h3").inner_text().startswith(f"digit: {one} ")
    assert "resized to 28 x 28" in tab.locator("#given").inner_text()
    assert errors == []


def test_poked_pixels_change_the_answer_and_come_off_again(browser: Browsed, server: Served) -> None:
    tab, _ = browser.open(server.page)
    count = answered(tab)
    before = pixels(tab, "#image")
    tab.get_by_label("Poke: paint over pixels").check()
    tab.locator("#pad").click()
    count = answered(tab, count)
    changed = (pixels(tab, "#image") != before).any(dim=2).nonzero()
    assert 1 <= len(changed) <= 4
    assert "before the poke" in tab.locator(".card").first.inner_text()
    tab.get_by_role("button", name="Take it off").click()
    answered(tab, count)
    assert torch.equal(pixels(tab, "#image"), before)
    assert "before the poke" not in tab.locator(".card").first.inner_text()


def test_another_class_another_method_and_a_channel(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    heatmap = ".card:nth-child(3) .maps canvas"
    seen = [pixels(tab, heatmap)]
    tab.locator(".card:nth-child(3)").get_by_role("button", name="90°").click()
    count = answered(tab, count)
    assert "for 90°" in tab.locator(".card:nth-child(3)").inner_text()
    seen.append(pixels(tab, heatmap))
    tab.get_by_label("evidence by").select_option("saliency")
    count = answered(tab, count)
    seen.append(pixels(tab, heatmap))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    tab.get_by_label("the channels of stem.conv", exact=True).click(position={"x": 90, "y": 10})
    answered(tab, count)
    assert tab.locator("#unit h3").inner_text().startswith("stem.conv, channel 1")
    tab.locator("#unit canvas").first.hover(position={"x": 84, "y": 84})  # the middle of 168: place 14
    expect(tab.locator("#patch")).to_be_visible()
    words = tab.locator("#arithmetic").inner_text().replace("−", "-")
    about, summed = (float(re.findall(pattern, words)[0]) for pattern in (r"about (\S+?)\. ", r"= (\S+?)\.$"))
    assert about == pytest.approx(summed, abs=0.02 * max(1, abs(summed)))
    assert errors == []


def test_what_would_change_its_mind(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    card = tab.locator(".card").first
    card.get_by_role("button", name="What would change its mind?").click()
    expect(card.locator(".way")).to_contain_text("Towards another length")
    expect(card.locator(".way input")).to_have_value("20")  # the last frame
    long = draw([LineScene(15, 1, 45, (255, 0, 0), 14.5, 14.5)])[0].permute(1, 2, 0)
    assert torch.equal(pixels(tab, "#image"), long.long())
    card.get_by_role("button", name="Keep this line").click()
    answered(tab, count)
    assert tab.locator("#length").input_value() == "15"
    assert not card.locator(".way").is_visible()
    assert errors == []


def test_a_way_ends_where_something_else_is_asked(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    tab.locator(".card").nth(2).get_by_role("button", name="What would change its mind?").click()
    expect(tab.locator(".card").nth(2).locator(".way")).to_be_visible()
    set_slider(tab, "angle", 90)
    said = tab.locator(".card h3").nth(2).inner_text()
    tab.wait_for_timeout(2500)  # longer than the whole way takes
    assert tab.locator(".card h3").nth(2).inner_text() == said
    assert not tab.locator(".way").nth(2).is_visible()
    assert "under-way" not in (tab.locator("#runs").get_attribute("class") or "")
    expected = draw([LineScene(7, 1, 90, (255, 0, 0), 14.5, 14.5)])[0].permute(1, 2, 0)
    assert torch.equal(pixels(tab, "#image"), expected.long())
    assert count >= 1
    assert errors == []


def test_moves_that_come_too_fast_are_gathered(browser: Browsed, server: Served) -> None:
    tab, _ = browser.open(server.page)
    count = answered(tab)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url) if request.url.endswith("api/answer") else None)
    tab.locator("#angle").evaluate(
        """slider => {
          for (let angle = 1; angle <= 100; angle++) {
            slider.value = angle;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
          }
        }"""
    )
    answered(tab, count)
    assert len(asked) <= 2
    expected = draw([LineScene(7, 1, 100, (255, 0, 0), 14.5, 14.5)])[0].permute(1, 2, 0)
    assert torch.equal(pixels(tab, "#image"), expected.long())


def state_hash(**part: Any) -> str:
    state = {
        "run": "multihead", "beside": "", "mode": "line", "strokes": [], "index": None, "paint": {},
        "line": {"length": 7, "width": 1, "angle": 45, "colour": [255, 0, 0], "x": 14, "y": 14},
        "method": "grad_cam", "targets": {}, "unit": None,
    }  # fmt: skip
    return "#" + base64.b64encode(json.dumps({**state, **part}).encode()).decode()


def test_an_address_restores_everything(browser: Browsed, server: Served, learned: Path) -> None:
    part = {
        "mode": "test", "index": 123, "paint": {"3,5": [0, 255, 0]}, "method": "saliency", "beside": "digits",
        "targets": {"angle": "90°"}, "unit": {"layer": "stem.conv", "channel": 3},
    }  # fmt: skip
    tab, errors = browser.open(server.page + state_hash(**part))
    answered(tab)
    expected = cnnlab.load(learned).test_split.images(torch.tensor([123]))[0].permute(1, 2, 0).long()
    expected[5, 3] = torch.tensor([0, 255, 0])
    assert torch.equal(pixels(tab, "#image"), expected)
    assert "for 90°" in tab.locator(".card").nth(2).inner_text()
    assert tab.locator("#unit h3").inner_text().startswith("stem.conv, channel 3")
    assert tab.locator("#method").input_value() == "saliency"
    assert tab.locator(".run").count() == 2
    assert errors == []


@pytest.mark.parametrize(
    "part",
    [
        {"line": None}, {"targets": None}, {"mode": "foo"}, {"strokes": None}, {"paint": {"x": 5}}, {"unit": "<b>"},
        {"line": {"length": "7"}}, {"index": -1},
    ],
)  # fmt: skip
def test_an_address_that_holds_nonsense_begins_at_the_beginning(
    browser: Browsed, server: Served, part: dict[str, Any]
) -> None:
    tab, errors = browser.open(server.page + state_hash(**part))
    answered(tab)
    assert "holds no state of this page" in tab.locator("#status").inner_text()
    set_slider(tab, "angle", 60)
    assert tab.locator("#status").inner_text() == ""
    assert errors == []


def test_a_run_that_cannot_be_opened_leaves_the_page_as_it_was(browser: Browsed, learned: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for name in ("good", "broken"):
        shutil.copytree(learned, outputs / name)
    (outputs / "broken" / "checkpoints" / "best.ckpt").write_bytes(b"nothing")
    server = Served(f"run={outputs}/good", "port=0", folder=tmp_path)
    try:
        tab, _ = browser.open(server.page)
        answered(tab)
        for select in ("#beside", "#run"):
            tab.locator(select).select_option("broken")
            expect(tab.locator("#status")).to_contain_text("best.ckpt")
            assert tab.locator("#run").input_value() == "good"
            assert tab.locator("#beside").input_value() == ""
            set_slider(tab, "angle", 60)
            assert tab.locator("#status").inner_text() == ""
        again, _ = browser.open(server.page + state_hash(run="broken"))
        answered(again)
        assert again.locator(".card").count() == 4
    finally:
        server.end()


def test_the_keyboard_alone_is_enough(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    tab.get_by_role("button", name="Test images").focus()
    tab.keyboard.press("Enter")
    count = answered(tab, count)
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    count = answered(tab, count)
    assert tab.evaluate("document.activeElement.title").startswith("test image ")  # the focus stays
    tab.locator("#channel").fill("7")
    tab.keyboard.press("Tab")
    answered(tab, count)
    assert tab.locator("#unit h3").inner_text().startswith("stem.conv, channel 7")
    tab.get_by_role("button", name="Guided tour").press("Enter")
    expect(tab.locator("#guide")).to_be_focused()
    assert errors == []


def test_two_runs_side_by_side_on_the_same_input(browser: Browsed, server: Served) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    tab.get_by_label("compare with").select_option("digits")
    answered(tab, count)
    assert tab.locator(".run").count() == 2
    assert tab.locator(".card").count() == 5
    assert errors == []


def test_what_is_taken_away_comes_back(browser: Browsed, server: Served, learned: Path, tmp_path: Path) -> None:
    tab, errors = browser.open(server.page)
    answered(tab)
    set_slider(tab, "angle", 100)
    tab.wait_for_timeout(400)  # until the address holds it
    image = pixels(tab, "#image")
    again, _ = browser.open(tab.url)
    answered(again)
    assert again.locator("#angle").input_value() == "100"
    assert torch.equal(pixels(again, "#image"), image)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="State").click()
    state = tmp_path / "play.json"
    download.value.save_as(state)
    content = json.loads(state.read_text())
    saved = np.frombuffer(base64.b64decode(content["image"]["pixels"]), np.uint8).reshape(content["image"]["shape"])
    assert torch.equal(torch.from_numpy(saved.copy()).long(), image)
    run = cnnlab.load(learned)
    assert torch.equal((run.inputs(state).images[0] * 255).round().long(), image.permute(2, 0, 1))
    said = content["said"]["angle"]
    assert run.predict(state)["angle"] == [max(said, key=said.get)]
    python, flag, module, *words = shlex.split(content["explain"])  # the command that the state names
    assert (python, flag, module, f"run={learned}") == ("python", "-m", "cnnlab.explain", words[0])
    words = [word.replace("images=play.json", f"images={state}") for word in words]
    assert f"images={state}" in words
    in_process("explain", *words, f"out={tmp_path}", "ascent.steps=1", "layers=[stem.conv]")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Picture").click()
    download.value.save_as(tmp_path / "play.png")
    assert (tmp_path / "play.png").stat().st_size > 5000
    assert errors == []


@pytest.mark.parametrize("name", ["multihead", "digits"])
def test_every_step_of_the_tour_is_a_state_of_the_page(browser: Browsed, server: Served, name: str) -> None:
    tab, errors = browser.open(server.page)
    count = answered(tab)
    if name == "digits":
        tab.locator("#run").select_option("digits")
        count = answered(tab, count)
    tab.get_by_role("button", name="Guided tour").click()
    for step in range(1, 9):
        count = answered(tab, count)
        assert tab.locator("#guide h2").inner_text().startswith(f"{step} of 8: ")
        assert tab.locator("#status").inner_text() == ""
        if step < 8:
            tab.get_by_role("button", name="Next").click()
    tab.get_by_role("button", name="End").click()
    assert not tab.locator("#guide").is_visible()
    assert errors == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_no_wider_than_the_window(browser: Browsed, server: Served, width: int, scheme: str) -> None:
    tab, errors = browser.open(server.page, width, scheme)
    count = answered(tab)
    for mode in ("Draw", "Test images", "Line"):
        tab.get_by_role("button", name=mode, exact=True).click()
        count = answered(tab, count)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.get_by_label("the channels of angle.conv2", exact=True).click(position={"x": 5, "y": 5})
    answered(tab, count)
    assert tab.locator("#unit").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.querySelectorAll('button, input, select')].every(each => each.textContent"
                        " || each.closest('label') || each.ariaLabel || each.title)")  # fmt: skip
    assert errors == []


def test_two_tabs_do_not_disturb_each_other(browser: Browsed, server: Served) -> None:
    first, _ = browser.open(server.page)
    second, _ = browser.open(server.page)
    answered(first)
    answered(second)
    set_slider(first, "angle", 30)
    set_slider(second, "angle", 120)
    for tab, angle in ((first, 30), (second, 120)):
        expected = draw([LineScene(7, 1, angle, (255, 0, 0), 14.5, 14.5)])[0].permute(1, 2, 0)
        assert torch.equal(pixels(tab, "#image"), expected.long())


def test_when_the_server_has_ended_the_page_says_so(browser: Browsed, learned: Path) -> None:
    server = Served(f"run={learned}", "port=0", folder=learned)
    tab, _ = browser.open(server.page)
    answered(tab)
    assert server.end() == 0
    tab.locator("#angle").evaluate("slider => slider.dispatchEvent(new Event('input', {bubbles: true}))")
    expect(tab.locator("#status")).to_contain_text("start python -m cnnlab.play again")
