"""Many runs in one table: what differs between them, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cnnlab.callbacks.metrics_history import best_accuracy
from cnnlab.cli import flatten
from cnnlab.errors import UserError
from cnnlab.runs import Run

Settings = dict[str, Any]

# Runs that differ in nothing but these are repetitions of one another.
_REPEATED = (
    "seed",
    "data.seed",
    "resume",
    "data.root",
    "data.train.root",
    "data.test.root",
    "data.num_workers",
    "threads",
    "tags",
)
# So are those that differ in who looks on, and when is saved what to resume from.
IGNORED_KEYS = ("logger", "callbacks.last_checkpoint", "callbacks.interval_checkpoint", "callbacks.progress_bar")
GOAL = 0.999  # of every head on validation: how many epochs until then?


@dataclass(frozen=True)
class RunRecord:
    """One run folder, as far as it can be read. `rows` are those of `metrics.csv`."""

    path: Path
    settings: Settings = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    @property
    def status(self) -> str:
        return self.error or str(self.summary.get("status", "unfinished"))

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def accuracies(self, on: tuple[str, str] | None) -> dict[str, float]:
        """{"joint", then each head where there are several: test accuracy in [0, 1]}, `on` the test images of
        one (head, class) or on all."""
        test = self.summary["test"]
        if on is None:
            heads = {name: head["accuracy"] for name, head in test["heads"].items()}
            joint = test["joint_accuracy"]
        else:
            try:
                heads = dict(test["by_class"][on[0]][on[1]])
            except KeyError:
                raise UserError(f"{self.path} has no test images of {on[0]}={on[1]}") from None
            joint = heads.pop("joint_accuracy")
        return {"joint": joint} | (heads if len(heads) > 1 else {})

    def epochs_to_goal(self) -> int | None:
        """Epochs until every head reached `GOAL` on validation, if ever."""
        for epoch, row in enumerate(self.rows, start=1):
            parts = [(name.split("/"), value) for name, value in row.items()]
            heads = [value for part, value in parts if (part[0], part[-1], len(part)) == ("val", "acc", 3)]
            if heads and min(heads) >= GOAL:
                return epoch
        return None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed. `differing` are the settings in which the groups differ, `shown`
    those of them that the experiment's name does not say."""

    records: list[RunRecord]
    differing: Settings
    shown: Settings

    @property
    def finished(self) -> list[RunRecord]:
        return [record for record in self.records if record.finished]

    @property
    def status(self) -> str:
        """What became of the runs that did not finish."""
        return "; ".join(dict.fromkeys(record.status for record in self.records if not record.finished))

    def name(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {value!s:.60}" for key, value in self.shown.items()) or "all"

    def row(self, on: tuple[str, str] | None = None) -> dict[str, Any]:
        """The group as a row of `compare.csv`: numbers unrounded, accuracies in [0, 1]."""
        done = self.finished
        experiment = {"experiment": self.records[0].settings.get("experiment")}
        row: dict[str, Any] = {**experiment, **self.differing, "runs": len(self.records), "finished": len(done)}
        row |= {"status": self.status or "finished"}
        if not done:
            return row
        best = mean(best_accuracy(record.rows) for record in done)
        if best == best:  # not NaN, as of a run without MetricsHistory
            row["validation"] = best
        columns = [record.accuracies(on) for record in done]
        for name in columns[0]:
            row |= _spread(name, [column[name] for column in columns])
        heads = [record.summary["test"]["heads"] for record in done]
        if len(heads[0]) == 1 and on is None:
            for score in ("f1", "precision", "recall"):
                row[score] = mean(one[score] for head in heads for one in head.values())
            worst = [(one["worst_recall"], one["worst_class"]) for head in heads for one in head.values()]
            row["worst_recall"], row["worst_class"] = min(worst)
        elif len(heads[0]) > 1:
            means = [mean(value for name, value in column.items() if name != "joint") for column in columns]
            row |= _spread("heads_mean", means)
        reached = [epochs for record in done if (epochs := record.epochs_to_goal()) is not None]
        row["reached_goal"] = len(reached)
        row["epochs_to_goal"] = mean(reached) if reached else None
        row["seconds"] = mean(record.summary["train_seconds"] for record in done)
        row["epochs"] = max(record.summary["epochs"] for record in done)
        row["parameters"] = done[0].summary["parameters"]["total"]
        row["overlap"] = max(record.summary["data"]["overlap"] for record in done)
        row["seeds"] = " ".join(sorted(str(record.summary["seed"]) for record in done))
        row["machine"] = done[0].summary["machine"]
        row["commit"] = " ".join(sorted({str(record.summary["commit"]) for record in done}))
        return row


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: mean(values),
        f"{name}_std": stdev(values) if len(values) > 1 else None,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def find(paths: Sequence[Path]) -> list[RunRecord]:
    """Every run in `paths`, which are run folders or folders with run folders somewhere inside.

    Raises `UserError` where there is none.
    """
    records = []
    for path in paths:
        found = sorted({file.parent.resolve() for file in path.rglob("config.yaml")}, key=_numbered)
        if not found:
            raise UserError(f"there is no run in {path}: a run folder holds a config.yaml")
        records += [read(folder) for folder in found]
    return list({record.path: record for record in records}.values())


def _numbered(path: Path) -> tuple[Any, ...]:
    """Sort key by which job 10 comes after job 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in path.parts)


def read(folder: Path) -> RunRecord:
    """A run folder. What cannot be read is said in the record, not raised: it is one of many."""
    settings: Settings = {}
    try:
        run = Run(folder)
        settings = _settings(run)
        record = RunRecord(folder, settings, run.summary, run.metrics)
        for row in record.rows:
            _check_shares({name: value for name, value in row.items() if name.endswith("/acc")})
        if record.finished:
            _check_numbers(record.summary)
            Group([record], {}, {}).row()  # whether all that a table needs is there
        return record
    except _UNREADABLE as error:
        kind = type(error.__cause__ or error).__name__
        return RunRecord(folder, settings, {}, error=f"unreadable ({kind})")


def _check_numbers(summary: dict[str, Any]) -> None:
    """Raise `ValueError` where a number of a finished run is none, or can be none of a run."""
    test = summary["test"]
    _check_shares({name: value for name, value in test.items() if name not in ("images", "loss")})
    counts = (summary["epochs"], summary["train_seconds"], summary["parameters"]["total"], summary["data"]["overlap"])
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < 1e15:
            raise ValueError(f"{count!r:.40} is no number of a run")


def _check_shares(node: Any) -> None:
    """Raise `ValueError` for a number in nested mappings that is not in [0, 1]."""
    for value in node.values():
        if isinstance(value, dict):
            _check_shares(value)
        elif not isinstance(value, str | list) and not 0 <= value <= 1:
            raise ValueError(f"{value!r:.40} is no share")


_UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, OSError, RecursionError,
    YAMLError, OmegaConfBaseException,
)  # fmt: skip


def _settings(run: Run) -> Settings:
    """The configuration as {"name.name": value}, the chosen options as {"net": "branched"}."""
    options: dict[str, str] = dict(run.config.get("options") or {})
    flat = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for key, value in flatten({key: run.config[key] for key in run.config if key != "options"})
    }
    if flat.get("init_from"):  # a run that began with another seed of the same is a repetition
        base = Path(flat["init_from"])
        flat["init_from"] = Run(base).config.experiment if base.is_dir() else str(base)
    unnamed = (*_REPEATED, *options)
    kept = {key: value for key, value in flat.items() if key not in unnamed and not key.endswith("_target_")}
    return {key: value for key, value in {**options, **kept}.items() if not key.startswith(IGNORED_KEYS)}


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """Runs folded by what they have in common, the best on validation first, unfinished ones last.

    Of settings that differ because another network (or data set, ...) was chosen, only the choice is named.
    """
    settings = [record.settings for record in records]
    differing, shown = _differing(settings, ()), _differing(settings, ("experiment",))
    folded: dict[str, list[RunRecord]] = {}
    for record in records:
        folded.setdefault(json.dumps(record.settings, sort_keys=True, default=str), []).append(record)
    found = [
        Group(members, *({key: at[key] for key in keys if key in at} for keys in (differing, shown)))
        for members in folded.values()
        for at in [members[0].settings]
    ]
    return sorted(found, key=lambda group: -(group.row().get("validation", -1.0)))


def _differing(settings: Sequence[Settings], within: Sequence[str]) -> list[str]:
    """The keys whose values differ among runs that made the same choice in the key's own group, and in
    `within`; those of `within` where they differ."""
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        chosen = [name for name in (*within, key.partition(".")[0]) if name != key]
        values: dict[Any, set[Any]] = {}
        for one in settings:
            choice = () if key in within else tuple(one.get(name) for name in chosen)
            values.setdefault(choice, set()).add(one.get(key))
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found
