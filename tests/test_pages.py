"""The pages in a real browser, at a desk's and a phone's width: no error, no sideways scroll, every control works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cnnlab
from cnnlab.api import Run
from cnnlab.utils.console import percent
from tests.browser import CHROMIUM, Browsed, browsed
from tests.conftest import TINY_LINES, in_process, run_train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]

WIDTHS = (1280, 390)
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browsed]:
    with browsed() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def class_run(folder: Path) -> Path:
    """One head of 96 classes."""
    return run_train(folder / "class", "experiment=lines_deep", *TINY_LINES)


def is_sound(browser: Browsed, page: Path) -> None:
    """Small, without errors, and no wider than the window; what it links to on itself is there."""
    assert page.stat().st_size < MAX_BYTES
    for width in WIDTHS:
        tab, errors = browser.open(page.as_uri(), width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, (page, width)
        missing = """[...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))
                     .filter(id => !document.getElementById(id))"""
        assert tab.evaluate(missing) == []
        assert tab.evaluate(
            "[...document.images].every(image => (image.alt || image.matches('.tiles > img + img'))"
            " && (image.complete || image.loading))"
        )
        wider = "row => row.children.length > 1 && row.scrollWidth > row.clientWidth"
        assert not tab.evaluate(f"[...document.querySelectorAll('.tiles')].some({wider})"), (page, width)
        assert tab.locator("nav a").count() == tab.locator("main h2").count()
        assert errors == []
        tab.close()


def test_the_page_of_a_run(browser: Browsed, lines_run: Path) -> None:
    is_sound(browser, lines_run / "report.html")
    tab, _ = browser.open((lines_run / "report.html").as_uri())
    assert tab.locator(".answer p").first.inner_text().startswith("All heads are right on ")
    assert "None of these test images is also in the training" in tab.locator(".answer").inner_text()
    tab.locator("summary", has_text="Layers").click()
    assert tab.get_by_text("98,927 parameters").is_visible()


def test_the_classes_of_a_run_are_searched(browser: Browsed, class_run: Path) -> None:
    tab, errors = browser.open((class_run / "report.html").as_uri())
    tab.locator("summary", has_text="Every class").click()
    rows = tab.locator("#classes tr:visible")
    assert rows.count() == 97
    tab.get_by_label("Show classes with").fill("Short 45° red")
    assert rows.all_inner_texts()[0].split()[:2] == ["head", "class"]
    found = [row.split("\t")[1] for row in rows.all_inner_texts()[1:]]  # also what is taken for one of them
    assert {"short thin 45° red", "short thick 45° red"} <= set(found)
    assert len(found) < 60
    tab.get_by_label("Show classes with").fill("")
    assert rows.count() == 97
    assert errors == []


def test_the_images_of_an_explanation_are_searched(browser: Browsed, lines_run: Path, folder: Path) -> None:
    words = ("ascent.steps=1", "layers=[stem.conv]", "indices=[0,1,2,3,4,5,6,7]")
    in_process("explain", f"run={lines_run}", f"out={folder}/searched", *words)
    tab, errors = browser.open((folder / "searched" / "1" / "index.html").as_uri())
    images = tab.locator(".strip button:visible")
    assert images.count() == 8
    tab.get_by_label("images with").fill("15° blue")  # what image 3 is, and what others may be taken for
    assert "test image 3" in images.evaluate_all("all => all.map(each => each.title)")
    tab.get_by_label("images with").fill("green")
    assert images.count() == 0
    assert errors == []


def test_the_pages_of_one_head_with_ten_and_with_96_classes(
    browser: Browsed, digits_run: Path, class_run: Path
) -> None:
    for run in (digits_run, class_run):
        is_sound(browser, run / "report.html")
        tab, _ = browser.open((run / "report.html").as_uri())
        assert "every head" not in tab.locator("body").inner_text().lower()


def test_the_page_of_an_explanation(browser: Browsed, lines_run: Path, folder: Path) -> None:
    words = ("ascent.steps=1", "method=[grad_cam,saliency,occlusion]", "targets=[predicted,45]", "indices=[3,14,20]")
    in_process("explain", f"run={lines_run}", f"out={folder}/explain", *words)
    page = folder / "explain" / "1" / "index.html"
    is_sound(browser, page)
    tab, errors = browser.open(page.as_uri())
    titles = tab.locator(".viewer .panel h4")
    assert titles.first.inner_text() == "test image 3"
    assert titles.count() == 5  # the image and four heads
    tab.get_by_role("button", name="test image 14").click()
    assert titles.first.inner_text() == "test image 14"
    assert tab.locator("[aria-pressed=true]").get_attribute("title") == "test image 14"
    assert tab.locator(".scale").first.inner_text().split()[0] == "0"
    drawn = "document.querySelectorAll('.panel canvas')[1].toDataURL()"
    seen = {tab.evaluate(drawn)}
    for control in ("outline the right pixels", "over the image"):
        tab.get_by_label(control).check()
        seen.add(tab.evaluate(drawn))
    tab.get_by_label("method").select_option("occlusion")
    seen.add(tab.evaluate(drawn))
    assert len(seen) == 4  # each of them changes the map
    tab.get_by_label("evidence for").select_option("45°")
    assert tab.locator(".panel", has_text="This head has no such class.").count() == 3
    assert titles.nth(3).inner_text().startswith("angle: 45°")
    tab.locator(".panel", has_text="angle: 45°").locator("canvas").first.hover()
    assert "% of the largest" in tab.locator(".panel", has_text="angle: 45°").inner_text()
    assert errors == []


def test_an_explanation_of_an_image_from_outside_outlines_no_truth(
    browser: Browsed, lines_run: Path, folder: Path
) -> None:
    in_process(
        "explain", f"run={lines_run}", f"out={folder}/outside", "ascent.steps=1", "layers=[stem.conv]",
        f"images={lines_run}/figures/samples.png",
    )  # fmt: skip
    page = folder / "outside" / "1" / "index.html"
    is_sound(browser, page)
    tab, _ = browser.open(page.as_uri(), 390)
    assert not tab.get_by_label("outline the right pixels").is_visible()
    assert "The right pixels of these images are not known" in tab.locator(".answer").inner_text()


def test_the_other_pages(browser: Browsed, lines_run: Path, digits_run: Path, folder: Path) -> None:
    in_process("audit", f"run={lines_run}", f"out={folder}/audit", "images=8", "method=[grad_cam,saliency]")
    in_process("audit", f"run={digits_run}", f"out={folder}/curves", "images=8", "method=[grad_cam]")
    in_process("research.renderers", f"run={lines_run}", f"out={folder}/robustness", "per_kind=1")
    in_process("compare", f"runs=[{lines_run},{digits_run}]", f"out={folder}")
    pages = [folder / name / "1" / "index.html" for name in ("audit", "curves", "robustness")]
    for page in (*pages, folder / "compare.html"):
        is_sound(browser, page)


def test_they_are_legible_in_the_dark(browser: Browsed, lines_run: Path) -> None:
    tab, _ = browser.open((lines_run / "report.html").as_uri(), scheme="dark")
    light = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0)"
    assert tab.evaluate(light.format("backgroundColor")) < 150
    assert tab.evaluate(light.format("color")) > 600


def test_a_share_reads_the_same_on_every_page(browser: Browsed, tmp_path: Path) -> None:
    script = (Path(cnnlab.__file__).parent / "reporting" / "templates" / "pixels.js").read_text()
    (tmp_path / "page.html").write_text(f"<script>{script}</script>")
    tab, errors = browser.open((tmp_path / "page.html").as_uri())
    shares = [0, 0.99775, 0.99785, 0.99996, 0.999999, 1, 0.9903, 0.99036, 1 / 3, 0.00004, *torch.rand(500).tolist()]
    assert tab.evaluate("shares => shares.map(Pixels.percent)", shares) == [percent(share) for share in shares]
    assert percent(0.99785) == "99.78 %"
    assert errors == []


def test_an_explanation_warns_of_maps_that_do_not_add_up(lines_run: Path, tmp_path: Path) -> None:
    words = (
        "method=[lrp,grad_cam]",
        "indices=[0,1,2,3,4,5,6,7]",
        "layers=[stem.conv]",
        "ascent.steps=1",
        "heads=[angle]",
    )
    in_process("explain", f"run={lines_run}", *words, f"out={tmp_path}")
    page = (tmp_path / "1" / "index.html").read_text()
    assert "LRP, predicted (angle): do not trust it: on " in page
    assert "Grad-CAM, angle" not in page


def test_a_class_without_test_images_is_named(lines_run: Path, tmp_path: Path) -> None:
    words = ("trainer.limit_test_batches=1", "data.eval_batch_size=24", "trainer.max_epochs=1")
    folder = run_train(tmp_path / "run", *TINY_LINES, *words)
    absent = Run(folder).summary["test"]["heads"]["length"]["absent_classes"]
    assert absent == ["long"]
    assert "length: no test image of long; the scores leave them out." in (folder / "report.html").read_text()
    assert "! length         no test image of long; their scores are not counted" in (folder / "log.txt").read_text()
    rows = (folder / "classes.csv").read_text().splitlines()
    assert "length,long,,,,0," in rows
