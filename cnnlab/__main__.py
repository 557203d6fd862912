"""cnnlab <command> <settings>: the same as python -m cnnlab.<command> <settings>."""

from __future__ import annotations

import os
import runpy
import sys

from cnnlab import __version__
from cnnlab.utils.errors import did_you_mean

COMMANDS = {
    "train": "train and test a network, and write a run folder",
    "play": "look inside a trained network in the browser",
    "explain": "show what a trained network learned",
    "audit": "say which of its heatmaps can be trusted",
    "predict": "answer images of your own",
    "export": "write it as ONNX or as a torch.export program",
    "compare": "many runs in one table",
}
USAGE = "\n".join(
    [
        f"cnnlab {__version__}: cnnlab <command> --help says more",
        *(f"  {name:11}{text}" for name, text in COMMANDS.items()),
        '  completion by tab: eval "$(cnnlab -sc install=bash)"',
    ]
)


def main() -> None:
    """Run a command as a module."""
    name, words = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("--help", [])
    if name in ("-sc", "--shell-completion"):
        _complete()
    elif name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else USAGE)
    elif name not in COMMANDS:
        sys.exit(f"error: there is no command '{name}'{did_you_mean(name, COMMANDS)}")
    else:
        sys.argv[1:] = words
        runpy.run_module(f"cnnlab.{name}", run_name="__main__", alter_sys=True)


def _complete() -> None:
    """Complete a line by Hydra. The shell asks one executable, so the command's name is removed from the line first."""
    line = os.environ.get("COMP_LINE", "cnnlab train ").split(" ")
    if len(line) < 3:
        print(" ".join(COMMANDS))
    elif line[1] in COMMANDS:
        os.environ["COMP_LINE"] = " ".join([line[0], *line[2:]])
        runpy.run_module(f"cnnlab.{line[1]}", run_name="__main__")


if __name__ == "__main__":
    main()
