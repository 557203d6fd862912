"""Fill docs/explanations.md and docs/explanations_appendix.md from the grades in docs/explanations/.

python research/docs/explanations.py <folder>  # first keep the grades that `python -m research.attribution` wrote there
python research/docs/explanations.py           # fill the pages again
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cnnlab.interpret.method_names import method_title
from cnnlab.plots.style import BLUE, ORANGE, save
from research.attribution.analysis import CEILING, by_network, correlations, discoveries, estimate, methods_of, table
from research.attribution.grades import DIFFERENCE, TRIVIAL, Grades

DOCS = Path(__file__).parents[2] / "docs"
KEPT = DOCS / "explanations"
PAGES = ("explanations.md", "explanations_appendix.md")
MAIN = "second_line"
SCENES = {"plain": "plain lines", "second_line": "a second line", "photos": "photographs", "photos_64": "photos 64 px"}
Rows = list[list[str]]


def read(folder: Path = KEPT) -> list[Grades]:
    """Return all grades in a folder, scene by scene."""
    every = [Grades.load(path) for path in sorted(folder.glob("*.npz"))]
    return sorted(every, key=lambda one: list(SCENES).index(one.facts["scene"]))


def scenes_of(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return {scene: its rows}."""
    return {str(scene): rows for scene, rows in frame.groupby("scene", sort=False)}


def claims(frame: pd.DataFrame) -> Rows:
    """Return a row per question and a column per scene."""
    every = scenes_of(frame)
    rows: Rows = [["", *(SCENES[scene] for scene in every)]]
    answers: dict[str, list[str]] = {}
    for part in every.values():
        methods = methods_of(part)
        gains, leads = (
            [estimate(by_network(part, column).loc[name]) for name in methods] for column in ("gain", "lead")
        )
        counts = {
            "networks": str(part["network"].nunique()),
            "rank correlation of grade and untrained grade": str(correlations(part, "grade", "untrained")),
            "rank correlation of grade and gain": str(correlations(part, "grade", "gain")),
            "methods that gain by training": f"{sum(discoveries(gains))} of {len(methods)}",
            "methods above the best trivial map": f"{sum(discoveries(leads))} of {len(methods)}",
        }
        for question, answer in counts.items():
            answers.setdefault(question, []).append(answer)
    return rows + [[question, *values] for question, values in answers.items()]


def methods(part: pd.DataFrame, count: int | None = None) -> Rows:
    """Return a row per method of a scene, the largest gain first."""
    columns = {name: by_network(part, name) for name in ("grade", "untrained", "gain", "lead", "own")}
    names = methods_of(part)
    gains, leads = ([estimate(columns[column].loc[name]) for name in names] for column in ("gain", "lead"))
    marks = [[" *" if found else "" for found in discoveries(estimates)] for estimates in (gains, leads)]
    rows: Rows = [["method", "grade", "untrained", "gain", "lead over the best trivial map", "own truth"]]
    for i in sorted(range(len(names)), key=lambda i: -gains[i].mean)[:count]:
        grade, untrained, own = (f"{columns[name].loc[names[i]].mean():.2f}" for name in ("grade", "untrained", "own"))
        cells = [f"{gains[i]}{marks[0][i]}", f"{leads[i]}{marks[1][i]}"]
        rows.append([method_title(names[i]), grade, untrained, *cells, own])
    return rows


def trivial(part: pd.DataFrame) -> Rows:
    """Return a row per trivial map of a scene."""
    heads = list(dict.fromkeys(part["head"]))
    rows: Rows = [["map without a network", *heads, "own truth"]]
    for name in (*TRIVIAL, DIFFERENCE, CEILING):
        of_map = part[part["method"] == name]
        means = [*(of_map[of_map["head"] == head]["grade"].mean() for head in heads), of_map["own"].mean()]
        rows.append([name, *("" if np.isnan(mean) else f"{mean:.2f}" for mean in means)])
    return rows


def heads(part: pd.DataFrame) -> Rows:
    """Return a row per method of a scene, and a column per head: the grade and the untrained grade."""
    names, asked = methods_of(part), list(dict.fromkeys(part["head"]))
    means = part.groupby(["method", "head"])[["grade", "untrained"]].mean()
    cells = [[f"{means['grade'][name, head]:.2f} ({means['untrained'][name, head]:.2f})" for head in asked]
             for name in names]  # fmt: skip
    return [["method", *asked], *([method_title(name), *row] for name, row in zip(names, cells, strict=True))]


def networks(every: list[Grades]) -> Rows:
    """Return a row per network and scene: seeds, test accuracy, and how many images count."""
    rows: Rows = [["network", "scene", "seeds", "all heads right", "images that count"]]
    groups: dict[tuple[str, str], list[Grades]] = {}
    for one in every:
        groups.setdefault((one.facts["network"], one.facts["scene"]), []).append(one)
    for (network, scene), members in groups.items():
        accuracy = np.mean([one.facts["accuracy"] for one in members])
        counted = np.mean([one.flips.mean() for one in members])
        rows.append([network, SCENES[scene], str(len(members)), f"{100 * accuracy:.1f} %", f"{100 * counted:.1f} %"])
    return rows


def tables(every: list[Grades]) -> dict[str, Rows]:
    """Return {name: rows of cells, the header first}."""
    frame = table(every)
    parts = scenes_of(frame)
    found = {"claims": claims(frame), "networks": networks(every), "ten": methods(parts[MAIN], 10)}
    for scene, part in parts.items():
        found |= {f"methods_{scene}": methods(part), f"heads_{scene}": heads(part), f"trivial_{scene}": trivial(part)}
    return found


def figure(frame: pd.DataFrame) -> Figure:
    """Draw every method's grade over its grade with random weights, a panel per scene of at least four networks."""
    parts = {scene: part for scene, part in scenes_of(frame).items() if part["network"].nunique() > 3}
    drawn = Figure(figsize=(4.6 * len(parts), 4.9), layout="constrained")
    for axes, (scene, part) in zip(
        drawn.subplots(1, len(parts), sharey=True, squeeze=False)[0], parts.items(), strict=True
    ):
        names = methods_of(part)
        grade, untrained = (by_network(part, column).loc[names].mean(axis=1) for column in ("grade", "untrained"))
        trivial_maps = part[part["method"].isin(TRIVIAL)].groupby(["head", "method"])["grade"].mean()
        best = trivial_maps.groupby("head").max().mean()
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, zorder=0)
        axes.axhline(best, color=ORANGE, linewidth=1.2, zorder=0)
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.text(0.94, best + 0.01, "best trivial map", fontsize=8, color="#9c6b00", ha="right", bbox=behind)
        axes.text(0.74, 0.70, "no gain", fontsize=8, color="#666666", rotation=45, ha="center", va="center")
        axes.scatter(untrained, grade, s=26, color=BLUE)
        for name in {grade.idxmax(), untrained.idxmax(), (grade - untrained).idxmax(), (grade - untrained).idxmin()}:
            place = (untrained[name], grade[name])
            axes.annotate(method_title(name), place, (5, -10), textcoords="offset points", fontsize=8, bbox=behind)
        axes.set(title=SCENES[scene], xlabel="grade with random weights", xlim=(0, 0.95), ylim=(0, 0.95))
    drawn.axes[0].set_ylabel("grade after training")
    return drawn


def filled(text: str, found: dict[str, Rows] | None = None) -> str:
    """Return a page with its tables made anew: <!-- table: name --> ... <!-- end -->."""
    found = tables(read()) if found is None else found

    def fill(match: re.Match[str]) -> str:
        header, *rows = found[match[1]]
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"<!-- table: {match[1]} -->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Keep grades, if a folder is given; then fill the pages and draw the figure."""
    if len(sys.argv) > 1:
        for path in sorted((Path(sys.argv[1]) / "grades").glob("*.npz")):
            shutil.copy(path, KEPT / path.name)
    every = read()
    found = tables(every)
    save(figure(table(every)), KEPT / "untrained.png")
    for name in PAGES:
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
