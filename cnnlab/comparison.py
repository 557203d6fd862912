"""Many runs in one table: what differs between them, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cnnlab import UserError
from cnnlab.files import read_csv

Settings = dict[str, Any]

# Runs that differ in nothing but these are repetitions of one another.
_REPEATED = ("seed", "data.seed", "resume", "data.root", "data.num_workers", "trainer.threads")
_BEFORE = {"bn_momentum": 0.99}  # what runs did that were made before there was the setting
GOAL = 0.999  # of every head on validation: how many epochs until then?


@dataclass(frozen=True)
class Entry:
    """One run folder, as far as it can be read. `rows` are those of `metrics.csv`."""

    path: Path
    settings: Settings = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    trouble: str = ""

    @property
    def status(self) -> str:
        return self.trouble or str(self.summary.get("status", "unfinished"))

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

    def validation(self) -> list[float]:
        """The share of validation images with every head right, epoch by epoch; of training images where
        there is no validation."""
        stage = "val" if self.rows and "val_joint_accuracy" in self.rows[0] else "train"
        return [row[f"{stage}_joint_accuracy"] for row in self.rows]

    def epochs_to_goal(self) -> int | None:
        """Epochs until every head reached `GOAL` on validation, if ever."""
        for epoch, row in enumerate(self.rows, start=1):
            heads = [
                value
                for name, value in row.items()
                if name.startswith("val_") and name.endswith("_accuracy") and name != "val_joint_accuracy"
            ]
            if heads and min(heads) >= GOAL:
                return epoch
        return None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed. `differing` are the settings in which the groups differ, `shown`
    those of them that the experiment's name does not say."""

    entries: list[Entry]
    differing: Settings
    shown: Settings

    @property
    def finished(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.finished]

    @property
    def status(self) -> str:
        """What became of the runs that did not finish."""
        return "; ".join(dict.fromkeys(entry.status for entry in self.entries if not entry.finished))

    def name(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.shown.items()) or "all"

    def row(self, on: tuple[str, str] | None = None) -> dict[str, Any]:
        """The group as a row of `compare.csv`: numbers unrounded, accuracies in [0, 1]."""
        done = self.finished
        experiment = {"experiment": self.entries[0].settings.get("experiment")}
        row: dict[str, Any] = {
            **experiment,
            **self.differing,
            "runs": len(self.entries),
            "finished": len(done),
        }
        row |= {"status": self.status or "finished"}
        if not done:
            return row
        row["validation"] = mean(max(entry.validation(), default=0.0) for entry in done)
        columns = [entry.accuracies(on) for entry in done]
        for name in columns[0]:
            row |= _spread(name, [column[name] for column in columns])
        heads = [entry.summary["test"]["heads"] for entry in done]
        if len(heads[0]) == 1 and on is None:
            for score in ("f1", "precision", "recall"):
                row[score] = mean(one[score] for head in heads for one in head.values())
            worst = [(one["worst_recall"], one["worst_class"]) for head in heads for one in head.values()]
            row["worst_recall"], row["worst_class"] = min(worst)
        elif len(heads[0]) > 1:
            means = [mean(value for name, value in column.items() if name != "joint") for column in columns]
            row |= _spread("heads_mean", means)
        reached = [epochs for entry in done if (epochs := entry.epochs_to_goal()) is not None]
        row["reached_goal"] = len(reached)
        row["epochs_to_goal"] = mean(reached) if reached else None
        row["seconds"] = mean(entry.summary["train_seconds"] for entry in done)
        row["epochs"] = max(entry.summary["epochs"] for entry in done)
        row["parameters"] = done[0].summary["parameters"]["total"]
        row["overlap"] = max(entry.summary["data"]["overlap"] for entry in done)
        row["seeds"] = " ".join(sorted(str(entry.summary["seed"]) for entry in done))
        row["machine"] = done[0].summary["machine"]
        row["commit"] = " ".join(sorted({str(entry.summary["commit"]) for entry in done}))
        return row


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: mean(values),
        f"{name}_std": stdev(values) if len(values) > 1 else None,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def find(paths: Sequence[Path]) -> list[Entry]:
    """Every run in `paths`, which are run folders or folders with run folders somewhere inside.

    Raises `UserError` where there is none.
    """
    entries = []
    for path in paths:
        found = sorted({file.parent.resolve() for file in path.rglob("config.yaml")}, key=_numbered)
        if not found:
            raise UserError(f"there is no run in {path}: a run folder holds a config.yaml")
        entries += [read(folder) for folder in found]
    return list({entry.path: entry for entry in entries}.values())


def _numbered(path: Path) -> tuple[Any, ...]:
    """Sort key by which job 10 comes after job 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in path.parts)


def read(folder: Path) -> Entry:
    """A run folder. What cannot be read is said in the entry, not raised: it is one of many."""
    settings: Settings = {}
    summary: dict[str, Any] = {}
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        settings = _settings(config)
        if (folder / "summary.json").is_file():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        metrics = folder / "metrics.csv"
        entry = Entry(folder, settings, summary, read_csv(metrics) if metrics.is_file() else [])
        if entry.finished:
            Group([entry], {}, {}).row()  # whether all that a table needs is there
        return entry
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        YAMLError,
        OmegaConfBaseException,
    ) as error:
        return Entry(folder, settings, {}, trouble=f"unreadable ({type(error).__name__})")


def _settings(config: dict[str, Any]) -> Settings:
    """The configuration as {"name.name": value}, the chosen options as {"net": "branched"}."""
    flat = dict(_leaves({key: value for key, value in config.items() if key != "options"}))
    if flat.get("from_run"):  # a run that began with another seed of the same is a repetition
        base = read(Path(flat["from_run"]))
        flat["from_run"] = base.settings.get("experiment", flat["from_run"])
    options: dict[str, str] = config.get("options", {})
    kept = {
        key: value for key, value in flat.items() if key not in _REPEATED and not key.endswith("_target_")
    }
    return {**_BEFORE, **options, **kept}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(node, ensure_ascii=False) if isinstance(node, list | dict) else node


def groups(entries: Sequence[Entry]) -> list[Group]:
    """Runs folded by what they have in common, the best on validation first, unfinished ones last.

    Of settings that differ because another network (or data set, ...) was chosen, only the choice is named.
    """
    settings = [entry.settings for entry in entries]
    differing, shown = _differing(settings, ()), _differing(settings, ("experiment",))
    folded: dict[str, list[Entry]] = {}
    for entry in entries:
        folded.setdefault(json.dumps(entry.settings, sort_keys=True, default=str), []).append(entry)
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
