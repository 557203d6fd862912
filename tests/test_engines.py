"""Sweeps on Hydra's launchers and sweepers: jobs at once, each with its share of the cores, none lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cnnlab.reporting.comparison import find
from cnnlab.training.callbacks import kept_accuracy
from tests.conftest import TINY_LINES, run_train

pytestmark = pytest.mark.slow

WORDS = ("experiment=multihead", *TINY_LINES, "trainer.max_epochs=1")


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], max(1, (os.cpu_count() or 1) // 2)),
        (["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"], 1),
    ],
    ids=["joblib", "submitit"],
)
def test_jobs_run_at_once_and_a_failing_one_stops_no_other(launcher: list[str], threads: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cnnlab.train", "-m", *WORDS, *launcher]
    command += ["net.filters=8,-1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: net: filters=-1 must be at least 1"
    records = find([tmp_path / "sweep"])
    assert [record.status for record in records] == ["finished", "failed"]
    assert f", {threads} thread{'s' * (threads > 1)}," in records[0].summary["machine"]  # its share of the cores
    assert "UserError" in (records[1].path / "log.txt").read_text()


@pytest.mark.filterwarnings("ignore")  # of the sweeper's old Optuna
def test_a_search_maximises_the_accuracy_on_validation(tmp_path: Path) -> None:
    run_train(
        tmp_path / "unused", "experiment=search", f"hydra.sweep.dir={tmp_path}/sweep", *WORDS[1:],
        "hydra.sweeper.n_trials=2",
    )  # fmt: skip
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    values = [kept_accuracy(record.summary) for record in find([tmp_path / "sweep"])]
    assert len(values) == 2
    assert found.best_value == pytest.approx(max(values))
    best = json.loads((tmp_path / "sweep" / str(values.index(max(values))) / "summary.json").read_text())
    assert best["status"] == "finished"
