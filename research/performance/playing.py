"""Play in a browser: from a slider's move to the drawn answer, with Grad-CAM of every head and the inside view.

python -m research.performance.playing <run> [moves]    in headless Chromium, on this machine, which both share
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

from playwright.sync_api import sync_playwright

from cnnlab.play.server import FILES
from cnnlab.utils.hardware import description

WARM = 10  # moves that do not count
PAUSE = 150  # milliseconds from one move to the next
MOVE = """(slider, value) => { slider.value = value; slider.dispatchEvent(new Event("input", { bubbles: true })); }"""
TOOK = "performance.getEntriesByName('answer').map(each => each.duration)"


def latencies(address: str, moves: int) -> list[float]:
    """The milliseconds from each of `moves` moves of the angle to the frame that shows the answer."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(address)
        for number in range(WARM + moves):
            tab.wait_for_timeout(PAUSE if number else 5000)
            tab.locator("#angle").evaluate(MOVE, (7 * number) % 180)
        tab.wait_for_timeout(2000)
        found: list[float] = tab.evaluate(TOOK)
        return found[WARM:]


def main(run: Path, moves: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "cnnlab.play", f"run={run}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        page = next(line for line in server.stdout if line.startswith("page"))
        start_up = time.perf_counter() - began
        took = latencies(page.split()[1], moves)
        server.terminate()
    size = sum(file.stat().st_size for file in FILES.values()) + len(
        (FILES["base.css"].parent / "play.html").read_bytes()
    )
    print(f"{description()}, page of {size / 1000:.0f} kB, served {start_up:.1f} s after the command")
    print(f"{len(took)} moves: median {median(took):.0f} ms, 95 % within {quantiles(took, n=20)[-1]:.0f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
