"""Runs side by side, with numbers worked out by hand: folding, sorting, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cnnlab.reporting.comparison import find, groups
from tests.conftest import TINY_LINES, in_process, run_train

pytestmark = pytest.mark.slow

EPOCHS = "epoch,val/acc,val/a/acc,val/b/acc,seconds,val_seconds\n"


def main(*words: str) -> None:
    """`python -m cnnlab.compare <words>` in this process."""
    in_process("compare", *words)


def _run(folder: Path, seed: int, joint: float, status: str = "finished", **settings: Any) -> Path:
    """A run folder as `train` writes one, of a network with heads a and b."""
    folder.mkdir(parents=True)
    config = {"experiment": "two", "options": {"net": "branched"}, "seed": seed, "net": {"filters": 8}}
    config |= {"data": {"task": "attributes"}, "trainer": {"max_epochs": 2}}
    OmegaConf.save(OmegaConf.merge(config, settings), folder / "config.yaml")
    heads = {name: {"accuracy": share} for name, share in (("a", 1.0), ("b", joint))}
    test = {"joint_accuracy": joint, "heads": heads}
    test["by_class"] = {"a": {"x": {"joint_accuracy": joint / 2, "a": 1.0, "b": joint / 2}}}
    summary = {
        "status": status, "seed": seed, "train_seconds": 10 + seed, "epochs": 2,
        "machine": "m", "commit": "c",
        "parameters": {"total": 99}, "data": {"overlap": 0}, "test": test, "accuracy": {"val": {"joint": joint}},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.csv").write_text(f"{EPOCHS}1,0.5,0.9,0.5,3,1\n2,{joint},1.0,{joint},3,1\n")
    return folder


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "compare.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two seeds of a small network, one of a large one that is better, one that failed."""
    folder = tmp_path / "sweep"
    _run(folder / "0", 0, 0.8)
    _run(folder / "1", 1, 0.9)
    _run(folder / "2", 0, 0.9995, net={"filters": 32})
    failed = _run(folder / "10", 0, 0.0, status="failed", net={"filters": 64})
    (failed / "summary.json").write_text(json.dumps({"status": "failed", "error": "RuntimeError: no"}))
    return folder


def test_seeds_are_folded_and_the_best_on_validation_is_first(sweep: Path) -> None:
    main(f"runs={sweep}")
    large, small, failed = _table(sweep)
    assert [row["net.filters"] for row in (large, small, failed)] == ["32", "8", "64"]
    assert "seed" not in large
    assert large["experiment"] == "two"
    assert (small["runs"], small["finished"], small["seeds"]) == ("2", "2", "0 1")
    assert float(small["joint"]) == pytest.approx(0.85)
    assert float(small["joint_std"]) == pytest.approx(0.05 * 2**0.5)
    assert float(small["heads_mean"]) == pytest.approx((1.0 + 0.85) / 2)
    assert float(small["seconds"]) == pytest.approx(10.5)
    assert (small["reached_goal"], small["epochs_to_goal"]) == ("0", "")
    assert (large["reached_goal"], large["epochs_to_goal"]) == ("1", "2")  # both heads above 99.9 %
    assert large["joint_std"] == ""
    assert (failed["status"], failed["finished"], failed["joint"]) == ("failed", "0", "")


def test_console_and_page_show_what_failed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"runs={sweep}")
    finding, _, *lines = capsys.readouterr().out.splitlines()
    assert finding.startswith(
        "Best on validation is filters 32: 99.95 % of all test images right. One seed says little"
    )
    assert lines[1].split()[:3] == ["net.filters", "n", "validation"]
    assert lines[2].split()[:3] == ["32", "1", "99.95"]  # one seed tells nothing apart
    assert lines[3].split()[2:7] == ["85.00", "85.00", "±", "7.07", "100.00"]
    assert lines[4].split() == ["64", "0", "of", "1", *["–"] * 9, "failed"]
    page = (sweep / "compare.html").read_text()
    assert "RuntimeError: no" in page
    assert page.index(finding) < page.index("<table")
    assert "data:image/png;base64," in page
    assert (sweep / "compare.png").exists()


def test_what_seeds_cannot_tell_apart_is_not_called_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {8: (0.95, 0.97), 16: (0.90, 0.96), 32: (0.80, 0.94)}
    for filters, values in shares.items():
        for seed, share in enumerate(values):
            _run(tmp_path / "close" / f"{filters}{seed}", seed, share, net={"filters": filters})
    main(f"runs={tmp_path / 'close'}")
    finding, _, *lines = capsys.readouterr().out.splitlines()
    assert finding.endswith("The seeds do not tell it from filters 16.")
    marks = [line.split()[0] for line in lines[2:5]]
    assert marks == ["≈", "≈", "32"]  # 16's best seed reaches 8's worst
    for seed in (0, 1):
        _run(tmp_path / "close" / f"64{seed}", seed, 0.98 + seed / 100, net={"filters": 64})
    main(f"runs={tmp_path / 'close'}")
    finding, _, *lines = capsys.readouterr().out.splitlines()
    assert finding.endswith("Its worst seed beats every other group.")
    assert [line.split()[0] for line in lines[2:6]] == ["best", "8", "16", "32"]


def test_each_data_set_has_a_list_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lines", "mnist"):
        _run(tmp_path / name, 0, 0.9, options={"data": name})
    main(f"runs={tmp_path}")
    said = capsys.readouterr().out
    assert "lines: accuracies on all test images" in said
    assert "mnist: accuracies on all test images" in said
    assert "<h2>mnist</h2>" in (tmp_path / "compare.html").read_text()


def test_jobs_are_found_in_their_order_and_only_once(sweep: Path) -> None:
    assert [record.path.name for record in find([sweep, sweep / "1"])] == ["0", "1", "2", "10"]


def test_another_choice_of_network_is_named_and_not_spelt_out(tmp_path: Path) -> None:
    _run(tmp_path / "0", 0, 0.8)
    _run(tmp_path / "1", 0, 0.9, options={"net": "shared_v1"}, net={"hidden": [64]})
    assert [group.differing for group in groups(find([tmp_path]))] == [{"net": "shared_v1"}, {"net": "branched"}]


def test_experiments_are_named_and_what_differs_is_kept(tmp_path: Path) -> None:
    _run(tmp_path / "0", 0, 0.8, experiment="one", trainer={"max_epochs": 3})
    _run(tmp_path / "1", 0, 0.9, trainer={"max_epochs": 4})
    (best, _) = groups(find([tmp_path]))
    assert best.name() == "experiment two"
    assert best.differing == {"experiment": "two", "trainer.max_epochs": 4}


def test_runs_that_began_with_seeds_of_one_experiment_are_repetitions(tmp_path: Path) -> None:
    for seed in (0, 1):
        base = _run(tmp_path / "base" / str(seed), seed, 0.9)
        _run(tmp_path / "more" / str(seed), 0, 0.9, init_from=str(base))
    (group,) = groups(find([tmp_path / "more"]))
    assert len(group.records) == 2


def test_runs_that_differ_in_their_loggers_are_repetitions(tmp_path: Path) -> None:
    _run(tmp_path / "0", 0, 0.8, options={"logger": "none"})
    _run(tmp_path / "1", 1, 0.9, options={"logger": "csv"}, logger={"csv": {"name": "csv"}})
    (group,) = groups(find([tmp_path]))
    assert len(group.records) == 2


def test_accuracies_on_one_class(sweep: Path) -> None:
    main(f"runs={sweep}", "where.a=x")
    assert float(_table(sweep)[0]["joint"]) == pytest.approx(0.9995 / 2)
    for wrong, message in (("where=a", "where=a is not names with values"), ("where.a=y", "has no test images of a=y")):
        with pytest.raises(SystemExit, match=message):
            main(f"runs={sweep}", wrong)


def test_what_is_cut_short_or_edited_is_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "1" / "summary.json").write_text('{"status": "fin')
    (sweep / "2" / "metrics.csv").write_text(f"{EPOCHS}1,0.5,much\n")
    (sweep / "10" / "config.yaml").write_text("net: [")
    (sweep / "0" / "summary.json").unlink()
    main(f"runs={sweep}")
    statuses = [record.status for record in find([sweep])]
    assert statuses[0] == "unfinished"
    assert [status.partition(" ")[0] for status in statuses[1:]] == ["unreadable"] * 3
    assert "unreadable" in capsys.readouterr().out


def _summary(folder: Path, path: str, value: str) -> None:
    """Put `value`, JSON as it stands, in the place of what `path` names in a summary."""
    summary = json.loads((folder / "summary.json").read_text())
    *parents, last = path.split(".")
    node = summary
    for name in parents:
        node = node[name]
    node[last] = "HERE"
    (folder / "summary.json").write_text(json.dumps(summary).replace('"HERE"', value))


def _config(folder: Path, text: str) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write(text)


def _pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


EDITS: dict[str, Callable[[Path], None]] = {
    **{
        f"{path} {value[:9]}": lambda folder, path=path, value=value: _summary(folder, path, value)  # type: ignore[misc]
        for path in ("test.joint_accuracy", "test.heads.a.accuracy", "epochs", "train_seconds", "data.overlap")
        for value in ("NaN", "Infinity", "null")
    },
    "deep summary": lambda folder: _summary(folder, "test", "[" * 5000 + "]" * 5000),
    "deep config": lambda folder: _config(folder, "deep: " + "[" * 3000 + "]" * 3000 + "\n"),
    "an alias to itself": lambda folder: _config(folder, "loop: &loop [*loop]\n"),
    "growing aliases": lambda folder: _config(
        folder, "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    ),
    "a huge file": lambda folder: _config(folder, f"long: {'x' * 2_000_000}\n"),
    "a pipe for a configuration": lambda folder: _pipe(folder, "config.yaml"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_costs_its_own_row_alone(edit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = _run(tmp_path / "runs" / "0", 0, 0.8), _run(tmp_path / "runs" / "1", 0, 0.9)
    EDITS[edit](bad)
    start = time.monotonic()
    main(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}")
    assert time.monotonic() - start < 60
    statuses = {record.path.name: record.status.partition(" ")[0] for record in find([good.parent])}
    assert statuses == {"0": "finished", "1": "unreadable"}
    assert "80.00" in capsys.readouterr().out


def test_markup_and_long_words_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "0", 0, 0.8, status="[red]half[/red] [/]")
    _run(tmp_path / "1", 0, 0.9, net={"filters": "x" * 100_000})
    main(f"runs={tmp_path}")
    said = capsys.readouterr().out
    assert "[red]half[/red] [/]" in said
    assert max(map(len, said.splitlines())) < 1000


def test_the_newest_sweep_is_compared(
    lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="there is no sweep in outputs/sweeps/: name the runs"):
        in_process("compare")
    for place, name in enumerate(("z", "a")):
        folder = shutil.copytree(lines_run, tmp_path / "outputs" / "sweeps" / name / "0")
        os.utime(folder / "config.yaml", (1e9 + place, 1e9 + place))
    in_process("compare")
    assert capsys.readouterr().out.startswith("runs  outputs/sweeps/a\n")
    assert (tmp_path / "outputs" / "sweeps" / "a" / "compare.html").is_file()


def test_no_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: there is no run in"):
        main(f"runs={tmp_path}")


def test_a_name_with_html_in_it_is_shown_and_not_run(tmp_path: Path) -> None:
    _run(tmp_path / "0", 0, 0.8, experiment="<script>alert(1)</script>")
    _run(tmp_path / "1", 0, 0.9)
    main(f"runs={tmp_path}")
    assert "<script>alert" not in (tmp_path / "compare.html").read_text()


def test_real_runs_from_several_places(lines_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = run_train(tmp_path / "other", "experiment=multihead", *TINY_LINES, "net.filters=8")
    copy = shutil.copytree(lines_run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    main(f"runs=[{other},{copy}]")
    rows = _table(tmp_path / "outputs" / "compare" / "1")
    assert {row["net.filters"] for row in rows} == {"8", "32"}
    assert {row["overlap"] for row in rows} == {"0"}


def test_runs_on_other_picture_folders_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    folder, chosen = tmp_path / "runs", {"options": {"net": "branched", "data": "folder"}}
    for number, root in enumerate(("/cats", "/dogs")):
        _run(folder / str(number), 0, 0.8 + number / 10, **chosen, data={"root": root})
    main(f"runs={folder}")
    assert [row["finished"] for row in _table(folder)] == ["1", "1"]
    assert {row["data.root"] for row in _table(folder)} == {"/cats", "/dogs"}
    assert (folder / "compare.html").read_text().count("root /") >= 2  # a table for each: their images differ


def test_downloaded_files_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for number, root in enumerate(("/here", "/there")):
        _run(folder / str(number), number, 0.8, data={"root": root, "train": {"_target_": "cnnlab.data.mnist.MNIST"}})
    main(f"runs={folder}")
    assert [row["finished"] for row in _table(folder)] == ["2"]


def test_validation_is_that_of_the_kept_weights(tmp_path: Path) -> None:
    """Another epoch may have a higher one; and the accuracy in training is none."""
    folder = tmp_path / "runs"
    first = _run(folder / "0", 0, 0.8)
    (first / "metrics.csv").write_text(f"{EPOCHS}1,0.99,0.99,0.99,3,1\n2,0.8,1.0,0.8,3,1\n")
    without = _run(folder / "1", 0, 0.9, net={"filters": 32})
    summary = json.loads((without / "summary.json").read_text())
    (without / "summary.json").write_text(json.dumps({**summary, "accuracy": {"train": {"joint": 0.9}, "val": {}}}))
    main(f"runs={folder}")
    assert [row["validation"] for row in _table(folder)] == ["0.8", ""]
