"""Compare runs: fold repetitions with other seeds, and write the groups to the console, a page, a CSV and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig

from cnnlab import plots
from cnnlab.reporting import html
from cnnlab.run import RunFolder
from cnnlab.utils.cli import as_list, flatten
from cnnlab.utils.console import as_table, echo, percent
from cnnlab.utils.errors import UserError
from cnnlab.utils.io import new_folder, to_csv, write_atomically

Row = dict[str, Any]
GOAL = 0.999  # validation accuracy of every head
NOTE = (
    "Sorted by validation accuracy, every head right. “best”: the worst seed of the group is above the best seed of "
    "every other group. “≈”: the seeds do not tell these groups apart. Test accuracies are in per cent, mean ± "
    f"standard deviation over seeds. To {GOAL:.1%}: epochs until every head reaches that on validation, in brackets "
    "how many runs did."
)
# Runs that differ only in these are repetitions of one another.
SEED_KEYS = ("seed", "data.seed", "resume", "data.num_workers", "threads", "tags")
DOWNLOADS = ("data.root", "data.train.root", "data.test.root")  # where files are kept that torchvision fetches
IGNORED_KEYS = ("logger", "callbacks.last_checkpoint", "callbacks.interval_checkpoint", "callbacks.progress_bar")
# Settings of a data set that change its validation and test images.
IMAGE_KEYS = (
    *("data.style", "data.test_style", "data.holdout", "data.placement", "data.task", "data.colours"),
    *("data.split_seed", "data.val_size", "data.test_size", "data.val_per_class", "data.test_per_class"),
    *("data.root", "data.table", "data.size", "data.channels", "data.val_share", "data.test_share"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.overfit_batches"),
)


@dataclass(frozen=True)
class Record:
    """One run folder: its flat settings, its summary, the rows of its `metrics.csv`, and why it cannot be read."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    @property
    def status(self) -> str:
        return self.error or str(self.summary.get("status", "unfinished"))

    @property
    def validation(self) -> float | None:
        """The validation accuracy of the kept weights, with every head right."""
        accuracy: float | None = self.summary.get("accuracy", {}).get("val", {}).get("joint")
        return accuracy

    @property
    def curve(self) -> list[float]:
        """The validation accuracy with every head right, for each epoch that has one."""
        return [row["val/acc"] for row in self.rows if "val/acc" in row]

    def accuracies(self, on: tuple[str, str] | None) -> dict[str, float]:
        """Return test accuracies in [0, 1], {"joint", and each head if there are several}, on all test images, or `on`
        the images of one (head, class)."""
        test = self.summary["test"]
        if on is None:
            heads, joint = {name: head["accuracy"] for name, head in test["heads"].items()}, test["joint_accuracy"]
        else:
            try:
                heads = dict(test["by_class"][on[0]][on[1]])
            except KeyError:
                raise UserError(f"{self.path} has no test images of {on[0]}={on[1]}") from None
            joint = heads.pop("joint_accuracy")
        return {"joint": joint} | (heads if len(heads) > 1 else {})

    def epochs_to_goal(self) -> int | None:
        """Return the epochs until every head reached `GOAL` on validation."""
        for epoch, row in enumerate(self.rows, start=1):
            heads = [
                row[name] for name in row if name.startswith("val/") and name.count("/") == 2 and name[-4:] == "/acc"
            ]
            if heads and min(heads) >= GOAL:
                return epoch
        return None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed. `differing` are the settings that differ between groups, `shown` is the part
    that the experiment's name does not tell."""

    records: list[Record]
    differing: dict[str, Any]
    shown: dict[str, Any]

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.status == "finished"]

    @property
    def status(self) -> str:
        """The status of the runs that did not finish."""
        return "; ".join(dict.fromkeys(record.status for record in self.records if record.status != "finished"))

    def name(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]} {value!s:.60}" for key, value in self.shown.items()) or "all"

    def row(self, on: tuple[str, str] | None = None) -> Row:
        """Return the group as a row of `compare.csv`: numbers unrounded, accuracies in [0, 1]."""
        done = self.finished
        row: Row = {"experiment": self.records[0].settings.get("experiment"), **self.differing}
        row |= {"runs": len(self.records), "finished": len(done), "status": self.status or "finished"}
        if not done:
            return row
        known = [record.validation for record in done if record.validation is not None]
        if len(known) == len(done):
            row["validation"] = mean(known)
        columns = [record.accuracies(on) for record in done]
        for name in columns[0]:
            row |= _spread(name, [column[name] for column in columns])
        heads = [head for record in done for head in record.summary["test"]["heads"].values()]
        if len(columns[0]) > 1:
            row |= _spread("heads_mean", [mean(v for k, v in column.items() if k != "joint") for column in columns])
        elif on is None:
            row |= {score: mean(head[score] for head in heads) for score in ("f1", "precision", "recall")}
            row["worst_recall"], row["worst_class"] = min((h["worst_recall"], h["worst_class"]) for h in heads)
        reached = [epochs for record in done if (epochs := record.epochs_to_goal()) is not None]
        row |= {"reached_goal": len(reached), "epochs_to_goal": mean(reached) if reached else None}
        row["seconds"] = mean(record.summary["train_seconds"] for record in done)
        row["epochs"] = max(record.summary["epochs"] for record in done)
        row["parameters"] = done[0].summary["parameters"]["total"]
        row["overlap"] = max(record.summary["data"]["overlap"] for record in done)
        row["seeds"] = " ".join(sorted(str(record.summary["seed"]) for record in done))
        row["machine"] = done[0].summary["machine"]
        row["commit"] = " ".join(sorted({str(record.summary["commit"]) for record in done}))
        return row


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    deviation = stdev(values) if len(values) > 1 else None
    return {name: mean(values), f"{name}_std": deviation, f"{name}_min": min(values), f"{name}_max": max(values)}


def find(paths: Sequence[Path]) -> list[Record]:
    """Return every run in `paths`, run folders or folders with runs inside. Raises `UserError` if there is none."""

    def job_number(path: Path) -> tuple[Any, ...]:
        return tuple((int(part), "") if part.isdigit() else (-1, part) for part in path.parts)

    records: dict[Path, Record] = {}
    for path in paths:
        folders = sorted({file.parent.resolve() for file in path.rglob("config.yaml")}, key=job_number)
        if not folders:
            raise UserError(f"there is no run in {path}: a run folder holds a config.yaml")
        records |= {folder: _read(folder) for folder in folders}
    return list(records.values())


def _read(folder: Path) -> Record:
    """Return a run folder's record. An unreadable run is one of many, so the record holds the error."""
    settings: dict[str, Any] = {}
    try:
        run = RunFolder(folder)
        settings = _settings(run)
        record = Record(folder, settings, run.summary, run.metrics)
        if record.status == "finished":
            Group([record] * 2, {}, {}).row()  # all that a table needs is there
        return record
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, OSError, RecursionError) as error:
        return Record(folder, settings, error=f"unreadable ({type(error.__cause__ or error).__name__})")


def _settings(run: RunFolder) -> dict[str, Any]:
    """Return the configuration as {"name.name": value}, chosen options as {"net": "branched"}."""
    options: dict[str, str] = dict(run.config.get("options") or {})
    flat = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for key, value in flatten({key: run.config[key] for key in run.config if key != "options"})
    }
    if flat.get("init_from"):  # another seed of the same experiment is a repetition
        base = Path(flat["init_from"])
        flat["init_from"] = RunFolder(base).config.experiment if base.is_dir() else str(base)
    ignored = {*SEED_KEYS, *options, *(DOWNLOADS if "data.train._target_" in flat else ())}
    kept = {key: v for key, v in flat.items() if key not in ignored and not key.endswith("_target_")}
    return {key: value for key, value in {**options, **kept}.items() if not key.startswith(IGNORED_KEYS)}


def groups(records: Sequence[Record]) -> list[Group]:
    """Return runs in groups that differ only in their seed, the best on validation first, unfinished ones last. Where
    another network (or data set, ...) was chosen, only the choice counts as a difference."""
    settings = [record.settings for record in records]
    differing, shown = _differing(settings, ()), _differing(settings, ("experiment",))
    folded: dict[str, list[Record]] = {}
    for record in records:
        folded.setdefault(json.dumps(record.settings, sort_keys=True, default=str), []).append(record)
    folded_groups = []
    for members in folded.values():
        first = members[0].settings
        parts = ({key: first[key] for key in keys if key in first} for keys in (differing, shown))
        folded_groups.append(Group(members, *parts))
    return sorted(folded_groups, key=lambda group: -(group.row().get("validation", -1.0)))


def _differing(settings: Sequence[dict[str, Any]], within: Sequence[str]) -> list[str]:
    """Return the keys with values that differ among runs with the same choice in the key's own group and in `within`;
    and the differing keys of `within`."""
    keys = []
    for key in dict.fromkeys(key for run_settings in settings for key in run_settings):
        chosen = [name for name in (*within, key.partition(".")[0]) if name != key]
        values: dict[Any, set[Any]] = {}
        for run_settings in settings:
            choice = () if key in within else tuple(run_settings.get(name) for name in chosen)
            values.setdefault(choice, set()).add(run_settings.get(key))
        if any(len(different) > 1 for different in values.values()):
            keys.append(key)
    return keys


def compare_run(cfg: DictConfig) -> str:
    """Compare the runs that `cfg` (conf/compare.yaml) names; return the path of the page."""
    paths = [Path(path).expanduser() for path in as_list(cfg.runs)] or [_newest_sweep()]
    out = Path(str(cfg.out)).expanduser() if cfg.out else None
    return str(compare(paths, out, {str(key): str(value) for key, value in cfg.where.items()}))


def _newest_sweep(sweeps: Path = Path("outputs/sweeps")) -> Path:
    """Return the sweep that wrote a run last, and print it. Raises `UserError` if there is none."""
    written = [(file.stat().st_mtime, file) for file in sweeps.glob("*/**/config.yaml")]
    if not written:
        raise UserError(
            f"there is no sweep in {sweeps}/: name the runs, runs=<run folder, or folder with runs inside>, or "
            "runs=[<one>,<two>]"
        )
    newest = sweeps / max(written)[1].relative_to(sweeps).parts[0]
    echo(f"runs  {newest}")
    return newest


def compare(paths: Sequence[Path], out: Path | None = None, where: Mapping[str, str] | None = None) -> Path:
    """Print the table of the runs in `paths`, and write `compare.html`, `.csv` and `.png`; return the page's path.

    The folder is `out`, else the one folder in `paths`, else `outputs/compare/<number>`. `where` {head: class} limits
    accuracies to the test images of that class. Raises `UserError` for no run, or no such class.
    """
    on = next(iter(where.items())) if where else None
    if where and len(where) > 1:
        raise UserError(f"where={dict(where)}: name one head and its class, like where.colour=green")
    ranked = groups(find(paths))
    rows = [group.row(on) for group in ranked]
    sets: dict[str, list[int]] = {}  # accuracies on different images are not ranked against each other
    names = [_data_set(group) for group in ranked]
    first = next(filter(None, names), "data")
    for place, name in enumerate(names):  # unreadable runs go into the first table
        sets.setdefault(name or first, []).append(place)
    tables = {name: _table([ranked[i] for i in places], [rows[i] for i in places]) for name, places in sets.items()}
    folder = out or (paths[0] if len(paths) == 1 else new_folder(Path("outputs") / "compare"))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.csv", to_csv(rows))
    labels = [group.name() for group in ranked]
    labels = [label if labels.count(label) == 1 else f"{label} ({i})" for i, label in enumerate(labels, start=1)]
    curves = {label: [record.curve for record in group.records if record.curve]
              for label, group in zip(labels, ranked, strict=True)}  # fmt: skip
    plots.save(plots.comparison({name: lines for name, lines in curves.items() if lines}), folder / "compare.png")
    subject = f"test images with {on[0]}={on[1]}" if on else "all test images"
    findings = {
        name: _finding([ranked[i] for i in places], [rows[i] for i in places], subject) for name, places in sets.items()
    }
    page = html.render(
        "compare.html", tables=tables, findings=findings, folder=folder, groups=ranked, note=NOTE, subject=subject
    )
    write_atomically(folder / "compare.html", page)
    for name, table in tables.items():
        heading = f"{name}: accuracies" if len(tables) > 1 else "Accuracies"
        echo(f"{findings[name]}\n\n{heading} on {subject}\n{as_table(table, left=2)}\n")
    echo(f"{NOTE}\npage  {folder / 'compare.html'}")
    return folder / "compare.html"


def _data_set(group: Group) -> str:
    """Return the data set of a group, with its differing settings; or ""."""
    data = group.records[0].settings.get("data")
    differing = [f"{key.partition('.')[2]} {group.differing[key]}" for key in IMAGE_KEYS if key in group.differing]
    return ", ".join([str(data), *differing]) if data else ""


def _finding(ranked: Sequence[Group], rows: Sequence[Row], subject: str) -> str:
    """Return which group is best, and how sure that is. `subject` names the test images that were counted."""
    if "validation" not in rows[0]:
        return "No finished run has a validation accuracy."
    text = f"{percent(rows[0]['joint'])} of {subject} right"
    if len(ranked) == 1:
        return f"{text}."
    near = [group.name() for mark, group in zip(_marks(ranked)[1:], ranked[1:], strict=True) if mark]
    if rows[0]["finished"] < 2:
        sure = "One seed says little: another may change the order"
    elif near:
        more = f", and {len(near) - 3} more" if len(near) > 3 else ""
        sure = f"The seeds do not tell it from {'; '.join(near[:3])}{more}"
    else:
        sure = "Its worst seed beats every other group"
    return f"Best on validation is {ranked[0].name()}: {text}. {sure}."


def _table(ranked: Sequence[Group], rows: Sequence[Row]) -> list[list[str]]:
    """Return the header, and a row of cells per group."""
    settings = list(dict.fromkeys(key for group in ranked for key in group.shown))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    spreads = [key for key in keys if f"{key}_min" in keys and f"{key}_max" in keys]
    extra = [key for key in ("f1", "epochs_to_goal", "epochs", "seconds", "parameters") if key in keys]
    titles = {"heads_mean": "mean of heads", "joint": "all heads right", "f1": "F1"}
    titles["epochs_to_goal"] = f"epochs to {GOAL:.1%}"
    several = any(len(group.records) > 1 for group in ranked)
    unfinished = any(group.status for group in ranked)
    header = [
        "",
        *settings,
        *(["n"] if several else []),
        "validation",
        *(titles.get(key, key) for key in spreads + extra),
    ]
    cells = [header + (["status"] if unfinished else [])]
    for mark, group, row in zip(_marks(ranked), ranked, rows, strict=True):
        line = [mark, *("–" if (value := group.shown.get(key)) is None else f"{value!s:.60}" for key in settings)]
        if several:
            line.append(f"{row['finished']}" + (f" of {row['runs']}" if row["finished"] < row["runs"] else ""))
        line.append(_percent(row.get("validation")))
        line += [_percent(row.get(key), row.get(f"{key}_std")) for key in spreads]
        line += [_percent(row.get(key)) if key == "f1" else _count(row, key) for key in extra]
        cells.append(line + ([group.status] if unfinished else []))
    return cells


def _marks(ranked: Sequence[Group]) -> list[str]:
    """Return "best" or "≈" for groups with seeds that reach the first group's."""
    seeds = [[record.validation or 0.0 for record in group.finished] for group in ranked]
    if len(ranked) < 2 or len(seeds[0]) < 2:
        return [""] * len(ranked)
    close = [bool(values) and max(values) >= min(seeds[0]) for values in seeds]
    return [("best" if sum(close) == 1 else "≈") if near else "" for near in close]


def _percent(value: float | None, deviation: float | None = None) -> str:
    if value is None:
        return "–"
    text = percent(value).removesuffix(" %")
    return text if deviation is None else f"{text} ± {100 * deviation:.2f}"


def _count(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    if key == "epochs_to_goal":
        return epochs_to_goal(value, row["reached_goal"], row["finished"])
    return f"{value:,.0f}"


def epochs_to_goal(epochs: float, reached: int, runs: int) -> str:
    """Return the mean epochs of the runs that reached the goal, and how many did."""
    return f"{epochs:.1f}" + (f" ({reached} of {runs})" if reached < runs else "")
