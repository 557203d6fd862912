"""A real browser for the pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browsed:
    """A browser, whose tabs tell of their errors."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def open(self, address: str, width: int = 1280, scheme: Any = "light") -> tuple[Page, list[str]]:
        """A new tab with the page, and the errors that it makes from then on."""
        errors: list[str] = []
        tab = self.browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_default_timeout(100_000)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("requestfailed", lambda request: errors.append(request.url))
        tab.goto(address)
        return tab, errors


@contextmanager
def browsed() -> Iterator[Browsed]:
    with sync_playwright() as playwright:
        yield Browsed(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]))
