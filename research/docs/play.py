"""Makes the pictures of docs/play.md, in headless Chromium:

python research/docs/play.py <run of multihead>    docs/gallery/play.gif (a line is turned and stretched) and play.png
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
SIZE = {"width": 1180, "height": 800}
MOVE = """([name, value]) => {
  const slider = document.getElementById(name);
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}"""
WAY = [
    *(("angle", angle) for angle in range(45, 106, 6)),
    *(("length", 7 + step) for step in range(1, 9)),
    *(("width", 1 + step / 2) for step in range(1, 5)),
]


def frames(tab: Page) -> list[Image.Image]:
    """The page while the sliders move along `WAY`."""
    found = []
    for name, value in WAY:
        tab.evaluate(MOVE, [name, value])
        tab.wait_for_timeout(300)
        shot = Image.open(io.BytesIO(tab.screenshot()))
        found.append(
            shot.convert("RGB")
            .resize((826, 560), Image.Resampling.LANCZOS)
            .quantize(128, kmeans=2, dither=Image.Dither.NONE)
        )
    return found


def main(run: str) -> None:
    command = [sys.executable, "-m", "cnnlab.play", f"run={run}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("page")).split()[1]
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
        tab.goto(address)
        tab.wait_for_timeout(3000)
        first, *others = frames(tab)
        first.save(GALLERY / "play.gif", save_all=True, append_images=others, duration=180, loop=0, optimize=True)
        tab.set_viewport_size({"width": SIZE["width"], "height": 2400})  # so that nothing scrolls under the pointer
        tab.get_by_label("the channels of stem.conv", exact=True).click(position={"x": 90, "y": 70})
        tab.wait_for_timeout(1000)
        tab.locator("#unit canvas").first.hover(position={"x": 84, "y": 84})
        tab.wait_for_timeout(500)
        inside = tab.locator("#inside").bounding_box()
        assert inside is not None
        shot = Image.open(io.BytesIO(tab.screenshot(clip={**inside, "height": 900})))
        shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(GALLERY / "play.png", optimize=True)
        server.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
