"""For mkdocs: the pages that stand at the top of the project, with their links as they are in the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=for_site((ROOT / source).read_text(encoding="utf-8"))))
    return files


def for_site(text: str) -> str:
    """A page whose links to other pages lead to them, and those to files of the project, which the site does not have,
    are names alone."""

    def moved(match: re.Match[str]) -> str:
        words, target = match.groups()
        if target in PAGES:
            return f"{words}({PAGES[target]})"
        if target.startswith("docs/"):
            return f"{words}({target.removeprefix('docs/')})"
        if ":" in target or target.startswith("#"):
            return match.group()
        return words.removeprefix("!").strip("[]")

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", moved, text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Notebooks name each other as the files that they are."""
    here = page.file.src_uri.startswith("notebooks/")
    return re.sub(r'href="([\w./]+)\.(?:ipynb|md)"', r'href="\1.html"', html) if here else html
