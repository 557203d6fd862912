"""Console output, and the log of a run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


def is_main_process() -> bool:
    """Return whether this process writes and logs, among those that Lightning or torchrun started."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def echo(text: str) -> None:
    """Print a text. Characters that the console cannot show become question marks; a full disk is ignored."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def command_line(module: str, setting: str, folder: Path) -> str:
    """Return a command line with a folder, quoted for the shell."""
    return f"python -m cnnlab.{module} {setting}={shlex.quote(str(folder))}"


def percent(share: float) -> str:
    """Return a share as a percentage with two decimals, the rest cut off: 0.99996 is "99.99 %", not 100. Float32's
    error is forgiven: 0.9999995 is 100. The pages do the same in templates/pixels.js."""
    return f"{int(share * 1e4 + 0.01) / 100:.2f} %"


def as_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows of cells as aligned text: the first `left` columns to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Show one line about the present work while it goes on; yield the function that sets it. Where the output is no
    terminal, a line is printed every 20 seconds."""
    console, printed = Console(stderr=True), time.monotonic()

    def say(text: str) -> None:
        nonlocal printed
        if console.is_terminal:
            status.update(text)
        elif time.monotonic() - printed > 20:
            printed = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    with console.status("") as status:
        yield say


class _ConsoleHandler(logging.Handler):
    """Log through the current `sys.stdout`, which a progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record))


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Log to the console and to `folder/log.txt`, in the main process only."""
    logger = logging.getLogger("cnnlab")
    before = logger.level, logger.propagate
    handlers: list[logging.Handler] = []
    if is_main_process():
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8", delay=True)
        file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk fails elsewhere
        handlers = [_ConsoleHandler(logging.INFO), file]
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.level, logger.propagate = before
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def quiet_lightning() -> None:
    """Silence advice from Lightning, and warnings about its own calls of torch."""
    for part in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(part).setLevel(logging.ERROR)
    for advice in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*in eval mode at the start of training.*",  # what train_heads leaves out
        "Total length of .list. across ranks is zero.*",
        "Checkpoint directory .* exists and is not empty.*",  # of a run that goes on
        ".*is smaller than the logging interval.*",
        ".*could not find the monitored key.*",  # before the first validation; after it, it is an error
    ):
        warnings.filterwarnings("ignore", advice)
