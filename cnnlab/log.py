"""What a command says: on the console, and of a run also in its `log.txt`, since jobs that run at once share a
console."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def is_main_process() -> bool:
    """Whether this process, of those that Lightning or torchrun started, is the one that writes and speaks."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def echo(text: str) -> None:
    """Print a text; what the console cannot show becomes a question mark, and one that takes nothing any more, as a
    full disk, is left alone."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def command_line(module: str, setting: str, folder: Path) -> str:
    """A command line with a folder in it that can be typed back, whatever the folder is called."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII)
    value = str(folder) if plain else "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"python -m cnnlab.{module} {setting}={value if plain else shlex.quote(value)}"


def percent(share: float) -> str:
    """Return a share as a percentage with two decimals, the rest cut off: 0.99996 is "99.99 %", not 100. Float32's
    error is forgiven: 0.9999995 is 100. The pages do the same in templates/pixels.js."""
    return f"{int(share * 1e4 + 0.01) / 100:.2f} %"


def as_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as lines, the columns in line: the first `left` from the left, the others from the right. As wide
    as it must be: a terminal breaks the lines."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


class _ConsoleHandler(logging.Handler):
    """Through `sys.stdout` as it is then: a live progress bar puts itself there."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record))


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Within, what cnnlab logs is said on the console and kept in `folder/log.txt`. Of several processes the main one
    alone speaks."""
    logger = logging.getLogger("cnnlab")
    before = logger.level, logger.propagate
    handlers: list[logging.Handler] = []
    if is_main_process():
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8", delay=True)
        file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is said where it matters
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
    """The console is ours: no advice from Lightning, and none about what it itself calls of torch."""
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
