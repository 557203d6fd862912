"""The server of the Play page, for this computer only unless a host is given."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import uvicorn
from omegaconf import DictConfig
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cnnlab.api import Run
from cnnlab.play.live_run import LiveRun
from cnnlab.play.questions import Question
from cnnlab.reporting.html import render
from cnnlab.run import find_run, finished_runs
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, did_you_mean
from cnnlab.utils.hardware import disable_malloc_trim

PACKAGE = Path(__file__).parent.parent
TYPES = {".js": "text/javascript", ".css": "text/css"}
FILES = {  # what is served besides the page; nothing else is
    file.name: file
    for file in (
        *sorted((PACKAGE / "play" / "static").iterdir()),
        *sorted((PACKAGE / "reporting" / "templates").iterdir()),
    )
    if file.suffix in TYPES
}
MAX_OPEN = 4  # runs kept in memory
PORTS = 20  # that are tried, one after another
LOCAL = ["127.0.0.1", "localhost", "::1", "[::1]"]
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
}


class OpenRuns:
    """The runs on the page: `first` and the finished ones below `outputs`. The last used ones stay open."""

    def __init__(self, first: Run, outputs: Path) -> None:
        self.first, self.outputs = first, outputs
        self._open: OrderedDict[str, LiveRun] = OrderedDict()
        self._known: dict[str, Path] = {}

    def listed(self) -> dict[str, Any]:
        """Return {"runs": [{name, title}], "first": name}, the first run and then the newest. A run is named by its
        path below `outputs`, or else by its folder or its whole path."""
        outputs = self.outputs.resolve()
        runs = {str(path.relative_to(outputs)): Run(path) for path in finished_runs(outputs)}
        names = {run.path: name for name, run in runs.items()}
        first = names.get(self.first.path) or self.first.path.name
        if runs.get(first, self.first).path != self.first.path:
            first = str(self.first.path)
        runs = {first: self.first, **runs}
        self._known = {name: run.path for name, run in runs.items()}
        return {
            "runs": [{"name": name, "title": f"{run.title} · {name}"} for name, run in runs.items()],
            "first": first,
        }

    def __getitem__(self, name: Any) -> LiveRun:
        """Return the run `name`. Raises `UserError` for a run that was not listed: no other path is opened."""
        if not isinstance(name, str) or name not in self._known:
            raise UserError("there is no such run here")
        if name not in self._open:
            self._open[name] = LiveRun(Run(self._known[name]))
        self._open.move_to_end(name)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return self._open[name]


def questions(runs: OpenRuns) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return {name: function} of the requests. Each raises `UserError`."""

    def about(asked: Mapping[str, Any]) -> tuple[LiveRun, Question, LiveRun]:
        """Return the run, the question, and the run of the test image."""
        question, run = Question.read(asked), runs[asked.get("run")]
        return run, question, run if question.source.run is None else runs[question.source.run]

    def of_image(method: Callable[[LiveRun, Question, LiveRun], Any]) -> Callable[[Mapping[str, Any]], Any]:
        return lambda asked: method(*about(asked))

    def path(asked: Mapping[str, Any]) -> Any:
        run, question, of = about(asked)
        return run.path_to_counterfactual(question, str(asked.get("head")), of)

    def unit(asked: Mapping[str, Any]) -> Any:
        channel = asked.get("channel")
        if not isinstance(channel, int) or isinstance(channel, bool):
            raise UserError("channel: give a whole number")
        return runs[asked.get("run")].unit(str(asked.get("layer")), channel)

    return {
        "runs": lambda _: runs.listed(),
        "run": lambda asked: runs[asked.get("run")].metadata,
        "answer": of_image(LiveRun.answer),
        "ood": of_image(LiveRun.ood),
        "path": path,
        "unit": unit,
    }


def application(runs: OpenRuns, token: str | None = None, host: str = LOCAL[0]) -> Starlette:
    """Return the server. Without a `token` it answers requests to local names and `host`; with one, requests with the
    token."""
    asks, lock = questions(runs), threading.Lock()

    def work(name: str, asked: Mapping[str, Any]) -> Response:
        with lock:
            return JSONResponse(asks[name](asked), headers=HEADERS)

    async def ask(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in asks:
            return _refusal(404, f"there is no question '{name}'{did_you_mean(name, asks)}")
        if request.headers.get("origin", own := f"http://{request.headers.get('host')}") != own:
            return _refusal(403, "only the page's own origin may ask")
        if not admitted(request.headers.get("x-token")):
            return _refusal(403, "the token is missing or wrong: open the address that the console says")
        try:
            return await asyncio.to_thread(work, name, _question(await request.body()))
        except UserError as error:
            return _refusal(400, str(error))
        except ClientDisconnect:
            return Response()

    def admitted(given: str | None) -> bool:
        return token is None or secrets.compare_digest((given or "").encode(), token.encode())

    async def page(request: Request) -> Response:
        if not admitted(request.query_params.get("token")):
            return Response("open the address that the console says, with its token\n", 403, HEADERS)
        return Response(render("play.html"), 200, HEADERS, "text/html")

    def served(path: Path) -> Callable[[Request], Response]:
        return lambda _: Response(path.read_bytes(), 200, HEADERS, TYPES[path.suffix])

    return Starlette(
        routes=[
            Route("/", page),
            *(Route(f"/{name}", served(path)) for name, path in FILES.items()),
            Route("/api/{name}", ask, methods=["POST"]),
        ],
        middleware=[]
        if token
        else [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, host], www_redirect=False)],
    )


def _question(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raises `UserError` for anything else."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise UserError("a question is a JSON object")
    return asked


def _refusal(status: int, why: str) -> Response:
    line = " ".join(why.splitlines()).encode(errors="replace").decode()  # half a character in a name is none
    return JSONResponse({"error": line}, status, HEADERS)


def play_run(cfg: DictConfig) -> None:
    """Serve the page with `conf/play.yaml` until Ctrl-C. Raises `UserError` for errors that the user can fix."""
    disable_malloc_trim()
    torch.set_num_threads(1)  # one image is soon done, and the browser has the other cores
    run = Run(find_run(cfg.run))
    listening = _listen(str(cfg.host), cfg.port)
    runs = OpenRuns(run, Path("outputs"))
    runs[runs.listed()["first"]].metadata  # noqa: B018  # what is wrong with the run is said now, not on the page
    token = None if _is_local(str(cfg.host)) else secrets.token_urlsafe(16)
    host, port = listening.getsockname()[:2]
    name = socket.gethostname() if ipaddress.ip_address(host).is_unspecified else f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}/{f'?token={token}' if token else ''}"
    config = uvicorn.Config(application(runs, token, host), log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        echo(f"run   {run.path}")
        echo(f"page  {address}")
        echo("Ctrl-C ends it")
        if cfg.browser and _has_screen():
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listening])
    echo("ended")


def _has_screen() -> bool:
    """Return whether a terminal and a screen are there, for a browser."""
    return sys.stdout.isatty() and (sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: Any) -> socket.socket:
    """Return a socket that listens at the port, or at the next free one. Raises `UserError`."""
    if not isinstance(port, int) or not 0 <= port < 2**16:
        raise UserError(f"port={port} is not in 0..65535")
    for number in range(port, min(port + PORTS, 2**16)):
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"host={host} port={number}: {error.strerror or error}") from error
    raise UserError(f"port={port}: it and the {PORTS - 1} after it are taken")
