"""Throw wrong values at every setting: each works, and is what the run's configuration
says, or ends in one line; never a traceback, never a value that is silently ignored.

python -m tests.fuzz 200     so many edited run folders, values of explain, audit and compare, and values of train
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cnnlab.utils.cli import CONF
from tests.conftest import in_process, run_train

BASE = (
    "experiment=multihead",
    "data.train_per_class=1",
    "data.val_per_class=1",
    "data.test_per_class=1",
    "trainer.max_epochs=1",
    "net.filters=4",
)
GROUPS = ("data", "net", "optimizer", "lr_scheduler", "weighting", "augment", "trainer", "callbacks", "logger")


def _settings() -> list[str]:
    """Every setting of the experiment, and every group."""
    train = OmegaConf.load(CONF / "train.yaml")
    keys = [key for key in train if key not in ("defaults", "hydra")]
    chosen = {
        "data": "lines",
        "net": "branched",
        "optimizer": "adam",
        "lr_scheduler": "one_cycle",
        "trainer": "default",
    }
    for group, option in chosen.items():
        loaded = OmegaConf.load(CONF / group / f"{option}.yaml")
        keys += [f"{group}.{key}" for key in loaded if not key.startswith("_")]
    keys += [f"data.jitter.{name}" for name in ("length", "width", "angle")]
    return [*keys, "weighting.weights.angle", "weighting.weights", *GROUPS, "experiment"]


NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**31, -(2**63), 10**30]), st.floats(width=32))
WORDS = ["null", "true", "''", "[]", "{}", "[1,2]", "{a: 1}", "nan", "inf", "-inf", "???", "auto", "cpu"]
WORDS += ["${seed}", "${nothing}", "lines", "mnist", "adamw", "/", "../x", "a,b", "1e400", "ümläut", "0x1", "1_0"]
VALUES = st.one_of(NUMBERS.map(str), st.sampled_from(WORDS), st.text(max_size=6))
# A huge number of these is no mistake, only long, or more than the machine has.
LONG = ("max_epochs", "num_workers", "per_class", "filters", "watch", "devices", "threads", "kernel_size")


def _short(key: str, value: str) -> str:
    try:
        most = 1 if key.endswith("devices") else 3  # several processes take seconds to start
        return str(most) if key.endswith(LONG) and float(value) > most else value
    except ValueError:
        return value


def attempt(key: str, value: str) -> str:
    """Train with `key=value`: "worked" or "refused"; `AssertionError` for everything else."""
    parent = Path(tempfile.mkdtemp())
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("error")
            run_train(parent / "run", *BASE, f"{key}={value}")
    except SystemExit as ended:
        line = str(ended)
        assert line.startswith("error: "), (key, value, line)
        assert "\n" not in line, (key, value, line)
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{key}={value!r}: {type(error).__name__}: {error}") from error
    else:
        summary: dict[str, Any] = json.loads((parent / "run" / "summary.json").read_text())
        assert summary["status"] == "finished", (key, value)
        assert _kept(OmegaConf.load(parent / "run" / "config.yaml"), key, value), (key, value, "was ignored")
        return "worked"
    finally:
        shutil.rmtree(parent)


def _settings_of(name: str) -> list[tuple[str, str]]:
    """(command, setting) of every setting of a command that looks at a run, and one that it does not have."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    keys = [str(key) for key in config if key not in ("defaults", "hydra", "run", "runs", "out")] + ["seed"]
    if name == "explain":
        keys += ["ascent", *(f"ascent.{key}" for key in OmegaConf.load(CONF / "ascent" / "smooth.yaml"))]
    if name in ("explain", "audit"):
        keys += ["method", "method.grad_cam", "+method.occlusion._target_", "+method.grad_cam.stepss"]
    return [(name, key) for key in keys]


LOOKING: dict[str, tuple[str, ...]] = {
    "explain": ("ascent.steps=1", "indices=[0]", "layers=[stem.conv]"),
    "audit": ("images=8", "method=[grad_cam]"),
    "compare": (),
    "predict": (),
    "export": (),
}


def attempt_to_look(name: str, run: Path, key: str, value: str) -> str:
    """Explain, audit or compare `run` with `key=value`: "worked" or "refused"; `AssertionError` for everything else."""
    parent = Path(tempfile.mkdtemp())
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            where = f"runs={run}" if name == "compare" else f"run={run}"
            in_process(name, where, f"out={parent}/out", *LOOKING[name], *([f"{key}={value}"] if key else []))
    except SystemExit as ended:
        line = str(ended)
        assert line.startswith("error: "), (name, key, value, line)
        assert "\n" not in line, (name, key, value, line)
        assert not list(parent.rglob("index.html")), (name, key, value)
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{name} {key}={value!r}: {type(error).__name__}: {error}") from error
    else:
        return "worked"
    finally:
        shutil.rmtree(parent)


def _edited(run: Path, file: str, place: float, junk: str, cut: bool) -> None:
    """Put `junk` into a file of a run folder, at `place` in [0, 1] of it; with `cut` nothing follows."""
    path = run / file
    content = path.read_bytes()
    at = int(place * len(content))
    path.write_bytes(content[:at] + junk.encode() + (b"" if cut else content[at + len(junk) :]))


def run_folders(run: Path, examples: int) -> dict[str, int]:
    """Edit a run folder `examples` times, each looked at by a command. Raises at the first that is no answer."""
    draw, counts = random.Random(0), {"worked": 0, "refused": 0}
    files = ("config.yaml", "summary.json", "metrics.csv", "checkpoints/best.ckpt", "log.txt")
    for number in range(examples):
        with tempfile.TemporaryDirectory() as parent:
            copy = Path(shutil.copytree(run, Path(parent) / "run"))
            edit = (draw.choice(files), draw.random(), draw.choice(JUNK), draw.random() < 0.3)
            _edited(copy, *edit)
            try:
                counts[attempt_to_look(draw.choice(list(LOOKING)), copy, "", "")] += 1
            except AssertionError as error:
                raise AssertionError(f"edit {number}, {edit}: {error}") from error
    return counts


JUNK = (
    "",
    "0",
    "NaN",
    "null",
    "[",
    "}",
    ": ",
    "- ",
    "&a *a",
    "${oc.env:HOME}",
    "\0",
    "é",
    "9" * 50,
    "\n\n",
    "_target_: os.system",
)


def _kept(config: Any, key: str, value: str) -> bool:
    """Whether the run's configuration says what the command line said."""
    said = OverridesParser.create().parse_override(f"{key}={value}").value()
    if key == "skip_finished" or said == {}:  # how to go on with a sweep; and nothing at all
        return True
    place = f"options.{key}" if key in GROUPS else key
    wanted = OmegaConf.select(OmegaConf.merge(config, {"said": said}), "said")  # ${seed} resolved
    found = OmegaConf.select(config, place)
    if key in GROUPS and wanted == []:  # none of that group
        return not config.get(key)
    return bool(found == wanted or (found != found and wanted != wanted))  # nan is not itself


def run(examples: int) -> dict[str, int]:
    """Try `examples` values; {"worked" and "refused": how many}. Raises at the first that does neither."""
    counts = {"worked": 0, "refused": 0}

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(_settings()), VALUES)
    def one(key: str, value: str) -> None:
        counts[attempt(key, _short(key, value))] += 1
        if sys.stdout.isatty() or sum(counts.values()) % 10 == 0:
            print(counts, end="\r" if sys.stdout.isatty() else "\n", flush=True)

    # Drawing takes most of the time, and no setting reaches it.
    with (
        mock.patch("cnnlab.reporting.run_report.write_figures"),
        mock.patch("cnnlab.reporting.run_report.render", return_value=""),
    ):
        one()
    return counts


def run_looking(run: Path, examples: int) -> dict[str, int]:
    """Try `examples` values of the settings of the commands that look at a run."""
    counts = {"worked": 0, "refused": 0}

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from([pair for name in LOOKING for pair in _settings_of(name)]), VALUES)
    def one(pair: tuple[str, str], value: str) -> None:
        counts[attempt_to_look(pair[0], run, pair[1], value)] += 1

    one()
    return counts


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as parent:
        finished = run_train(Path(parent) / "run", *BASE)
        print("edited folders", run_folders(finished, wanted), flush=True)
        print("the commands that look at a run", run_looking(finished, wanted), flush=True)
    print("train", run(wanted), flush=True)
