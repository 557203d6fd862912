"""The comparison of runs on the console, as a page, as CSV and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from omegaconf import DictConfig

from cnnlab import html, plots
from cnnlab.callbacks.metrics_history import accuracies, best_accuracy
from cnnlab.cli import as_list
from cnnlab.errors import UserError
from cnnlab.io import new_folder, to_csv, write_atomically
from cnnlab.log import as_table, echo, percent
from cnnlab.run_groups import GOAL, Group, find, groups

NOTE = (
    "Sorted by the share of validation images with every head right. “Best” is a group whose worst seed is above the "
    "best seed of every other; where there is none, those that reach the first one's worst seed are marked ≈: these "
    "seeds do not tell them apart. Test accuracies in per cent, mean ± standard deviation over seeds. "
    f"To {GOAL:.1%}: epochs until every head is that often right on validation, in brackets how many runs "
    "got there."
)
Row = dict[str, Any]


def compare_runs(cfg: DictConfig) -> str:
    """Compare the runs that `cfg` (conf/compare.yaml) names; returns the path of the page."""
    paths = [Path(path).expanduser() for path in as_list(cfg.runs)] or [_newest_sweep()]
    out = Path(str(cfg.out)).expanduser() if cfg.out else None
    return str(compare(paths, out, {str(key): str(value) for key, value in cfg.where.items()}))


def _newest_sweep(sweeps: Path = Path("outputs/sweeps")) -> Path:
    """Return the sweep that wrote a run last, and say which it is. Raises `UserError` where there is none."""
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
    """Print the table of the runs in `paths` and write `compare.html`, `.csv` and `.png` to `out` (into the
    folder itself where one is given, else to `outputs/compare/<number>`); returns the page's path.

    `where` is {head: class}, for the accuracies on the test images of that class alone. Raises `UserError`
    where there is no run, or no such class.
    """
    on = next(iter(where.items())) if where else None
    if where and len(where) > 1:
        raise UserError(f"where={dict(where)}: name one head and its class, like where.colour=green")
    found = groups(find(paths))
    rows = [group.row(on) for group in found]
    sets: dict[str, list[int]] = {}  # a list a data set: accuracies on different images are not ranked
    names = [_data_set(group) for group in found]
    first = next(filter(None, names), "data")
    for place, name in enumerate(names):  # a run that cannot be read stands in the first list
        sets.setdefault(name or first, []).append(place)
    tables = {name: _table([found[i] for i in places], [rows[i] for i in places]) for name, places in sets.items()}
    folder = out or (paths[0] if len(paths) == 1 else new_folder(Path("outputs") / "compare"))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.csv", to_csv(rows))
    curves = {group.name(): [accuracies(record.rows) for record in group.records if record.rows] for group in found}
    picture = folder / "compare.png"
    plots.save(plots.comparison({name: lines for name, lines in curves.items() if lines}), picture)
    every = {group.name(): [record.accuracies(on)["joint"] for record in group.finished] for group in found}
    plots.save(plots.seeds({name: values for name, values in every.items() if values}), folder / "compare_seeds.png")
    subject = f"test images with {on[0]}={on[1]}" if on else "all test images"
    page = html.render(
        "compare.html",
        tables=tables,
        picture=picture,
        seeds=folder / "compare_seeds.png",
        groups=found,
        note=NOTE,
        subject=subject,
    )
    write_atomically(folder / "compare.html", page)
    for name, table in tables.items():
        title = f"{name}: accuracies" if len(tables) > 1 else "Accuracies"
        echo(f"{title} on {subject}\n{_fitting(table)}\n")
    echo(f"{NOTE}\npage  {folder / 'compare.html'}")
    return folder / "compare.html"


# Settings of a data set that change which images are validated and tested.
_IMAGES = ("data.style", "data.test_style", "data.holdout", "data.placement", "data.task", "data.colours")


def _data_set(group: Group) -> str:
    """The data set of a group, and what of it differs among the groups that are compared; "" where it is not known."""
    data = group.records[0].settings.get("data")
    differing = [f"{key.partition('.')[2]} {group.differing[key]}" for key in _IMAGES if key in group.differing]
    return ", ".join([str(data), *differing]) if data else ""


def _fitting(table: list[list[str]]) -> str:
    """The table as lines, on a narrow terminal without its last columns but for the status."""
    width = get_terminal_size().columns if sys.stdout.isatty() else 10_000  # a file and a pipe get everything
    kept = list(range(len(table[0])))
    status = kept[-1:] if table[0][-1] == "status" else []

    def drawn() -> str:
        return as_table([[row[i] for i in kept] for row in table], left=2)

    while len(kept) > 3 + len(status) and max(map(len, drawn().splitlines())) > width:
        del kept[-1 - len(status)]
    rest = [name for i, name in enumerate(table[0]) if i not in kept]
    return drawn() + (f"\n(in compare.csv and on the page also: {', '.join(rest)})" if rest else "")


def _marks(found: Sequence[Group]) -> list[str]:
    """What is said of each group, the first of which has the highest mean on validation."""
    seeds = [[best_accuracy(record.rows) for record in group.finished] for group in found]
    if len(found) < 2 or len(seeds[0]) < 2:
        return [""] * len(found)
    close = [bool(own) and max(own) >= min(seeds[0]) for own in seeds]
    return [("best" if sum(close) == 1 else "≈") if near else "" for near in close]


def _table(found: Sequence[Group], rows: Sequence[Row]) -> list[list[str]]:
    """The header, and a row of cells for each group."""
    settings = list(dict.fromkeys(key for group in found for key in group.shown))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    spreads = [key for key in keys if f"{key}_min" in keys and f"{key}_max" in keys]
    names = {"heads_mean": "mean of heads", "joint": "all heads right"}
    extra = [key for key in ("f1", "epochs_to_goal", "epochs", "seconds", "parameters") if key in keys]
    titles = {"f1": "F1", "epochs_to_goal": f"epochs to {GOAL:.1%}"}
    several = any(len(group.records) > 1 for group in found)
    header = ["", *settings, *(["n"] if several else []), "validation"]
    header += [names.get(key, key) for key in spreads] + [titles.get(key, key) for key in extra]
    cells = [header]
    for mark, group, row in zip(_marks(found), found, rows, strict=True):
        line = [mark, *(_plain(group.shown.get(key)) for key in settings)]
        if several:
            line.append(f"{row['finished']}" + (f" of {row['runs']}" if row["finished"] < row["runs"] else ""))
        line.append(_share(row.get("validation")))
        line += [_share(row.get(key), row.get(f"{key}_std")) for key in spreads]
        line += [_share(row.get(key)) if key == "f1" else _count(row, key) for key in extra]
        cells.append(line)
    if any(group.status for group in found):
        cells = [[*line, text] for line, text in zip(cells, ["status", *(g.status for g in found)], strict=True)]
    return cells


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value!s:.60}"


def _share(value: float | None, deviation: float | None = None) -> str:
    """A share as a percentage, never rounded up to 100."""
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
    """The mean of the runs that got there, and how many did where not all."""
    return f"{epochs:.1f}" + (f" ({reached} of {runs})" if reached < runs else "")
