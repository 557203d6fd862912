"""A server of Play, as a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import TINY_LINES, run_train


class Served:
    """A server of `python -m cnnlab.play`, and questions to it."""

    def __init__(self, *words: str, folder: Path) -> None:
        command = [sys.executable, "-m", "cnnlab.play", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.said: list[str] = []
        assert self.process.stdout is not None
        while not (self.said and self.said[-1].startswith("page")):
            self.said.append(self.process.stdout.readline())
            assert self.said[-1], "the server did not begin"
        self.page = self.said[-1].split()[1]
        found = re.match(r"(http://.*?/)", self.page)
        assert found is not None
        self.address = found[1]

    def raw(self, question: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        """(status, answer)."""
        request = Request(f"{self.address}api/{question}", body, {"Content-Type": "application/json", **headers})
        try:
            with urlopen(request, timeout=100) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else {"error": text}

    def ask(self, question: str, **asked: Any) -> dict[str, Any]:
        status, answer = self.raw(question, json.dumps(asked).encode())
        assert status == 200, answer
        return answer

    def status(self, path: str) -> int:
        """The status of a page or file."""
        try:
            with urlopen(path, timeout=100) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    def end(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        with self.process:
            assert self.process.stdout is not None
            self.said += self.process.stdout.readlines()
            return self.process.wait(timeout=100)


@pytest.fixture(scope="session")
def lines_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the multi-head experiment that gives every answer of every head."""
    few = ("data.train_per_class=30", "data.batch_size=48")
    return run_train(tmp_path_factory.mktemp("lines") / "run", "experiment=multihead", *TINY_LINES, *few)


@pytest.fixture(scope="session")
def played(lines_run: Path) -> Iterator[Served]:
    server = Served(f"run={lines_run}", "port=0", folder=lines_run)
    yield server
    server.end()


@pytest.fixture(scope="session")
def played_digits(digits_run: Path) -> Iterator[Served]:
    server = Served(f"run={digits_run}", "port=0", folder=digits_run)
    yield server
    server.end()
