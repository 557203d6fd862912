"""What a finished run leaves behind: tables, pictures, the page, and the lines on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cnnlab import figures, page
from cnnlab.classifier import Answers, Classifier
from cnnlab.data.splits import LabData
from cnnlab.files import to_csv, write_whole
from cnnlab.heads import Head
from cnnlab.layers import layer_table, parameter_counts
from cnnlab.nets import Net
from cnnlab.progress import Log, Row

SHOWN = 24  # pictures in a grid
Summary = dict[str, Any]


def model_text(net: Net, in_channels: int) -> str:
    """The layer table with the totals."""
    rows = [("layer", "type", "output", "parameters")]
    for name, kind, shape, count in layer_table(net, in_channels):
        rows.append((name, kind, " × ".join(map(str, shape)), f"{count:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False)) for row in rows
    ]
    lines = [f"{line}  {row[3]:>{widths[3]}}" for line, row in zip(lines, rows, strict=True)]
    counts = parameter_counts(net)
    totals = (
        f"{counts['total']:,} parameters: {counts['trainable']:,} trainable, {counts['non_trainable']:,} not"
    )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", totals]) + "\n"


def results(classifier: Classifier) -> Summary:
    """`summary.json`'s "test" of a classifier that has been tested."""
    means = classifier.tally("test").compute()
    heads = {}
    for head in classifier.heads:
        values = classifier.metrics[head.name].compute()  # type: ignore[operator]
        worst = int(values["class_recall"].argmin())
        heads[head.name] = {
            "accuracy": means[f"{head.name}_accuracy"],
            # To 6 digits: the means over classes are float32, and of nothing but ones they are not quite 1.
            **{name: round(values[name].item(), 6) for name in ("f1", "precision", "recall")},
            "worst_class": head.classes[worst],
            "worst_recall": values["class_recall"][worst].item(),
        }
    found = {"joint_accuracy": means["joint_accuracy"], "loss": means["loss"], "heads": heads}
    return found | ({"by_class": _by_class(classifier)} if len(heads) > 1 else {})


def _by_class(classifier: Classifier) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {class: {"joint_accuracy" and each head's name: accuracy on the test images of that class}}}."""
    answers = Answers.joined(classifier.answers)
    right = answers.right()
    rows = {"joint_accuracy": right.all(dim=0), **dict(zip(answers.predicted, right, strict=True))}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for head in classifier.heads:
        for number, name in enumerate(head.classes):
            these = answers.targets[head.name] == number
            if these.any():
                scores = {row: values[these].double().mean().item() for row, values in rows.items()}
                found.setdefault(head.name, {})[name] = scores
    return found


def write(
    folder: Path, summary: Summary, rows: list[Row], data: LabData, classifier: Classifier, watched: int
) -> None:
    """The tables, the pictures and `report.html` of a tested classifier; `watched` is on how many images its
    heatmaps were graded after each epoch."""
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    values = {head.name: classifier.metrics[head.name].compute() for head in data.heads}  # type: ignore[operator]
    _write_tables(folder, data.heads, values)
    drawn = {
        "samples": _samples(data),
        "mistakes": _mistakes(data, classifier),
        "curves": _curves(rows, data.heads),
        "f_scores": _f_scores(data.heads, values),
    }
    if watched:
        lines = {head.name: [row[f"evidence_{head.name}"] for row in rows] for head in data.heads}
        drawn["evidence"] = figures.evidence(lines)
    weights = {head.name: [row[f"weight_{head.name}"] for row in rows] for head in data.heads}
    if any(len(set(values)) > 1 for values in weights.values()):  # they were learned
        drawn["weights"] = figures.weights(weights)
    if len(data.heads) > 1:
        drawn["by_class"] = figures.by_class(summary["test"]["by_class"])
    for head in data.heads:
        parts = [(part.name, part.classes) for part in head.parts]
        counts = values[head.name]["confusion"].cpu().numpy()
        drawn[f"confusion_{head.name}"] = figures.confusion(counts, head.classes, head.name, parts)
    for name, figure in drawn.items():
        figures.save(figure, pictures / f"{name}.png")
    html = page.render(
        "report.html",
        summary=summary,
        figures=pictures,
        folder=folder,
        watched=watched,
        model=(folder / "model.txt").read_text(encoding="utf-8"),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    write_whole(folder / "report.html", html)


def _write_tables(folder: Path, heads: tuple[Head, ...], values: dict[str, dict[str, Tensor]]) -> None:
    classes: list[dict[str, Any]] = []
    for head in heads:
        value = values[head.name]
        confusion = value["confusion"].tolist()
        write_whole(
            folder / f"confusion_{head.name}.csv",
            to_csv(
                [
                    {"true": name, **dict(zip(head.classes, counts, strict=True))}
                    for name, counts in zip(head.classes, confusion, strict=True)
                ]
            ),
        )
        for i, name in enumerate(head.classes):
            scores = {score: value[f"class_{score}"][i].item() for score in ("precision", "recall", "f1")}
            classes.append({"head": head.name, "class": name, **scores, "support": sum(confusion[i])})
    write_whole(folder / "classes.csv", to_csv(classes))


def _samples(data: LabData) -> figures.Figure:
    split = data.splits["train"]
    rows = torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long()
    targets = split.targets(rows)
    captions = [_classes(data.heads, targets, i) for i in range(len(rows))]
    return figures.images(split.images(rows).numpy(), captions, "Training images")


def _classes(heads: tuple[Head, ...], values: dict[str, Tensor], i: int) -> str:
    words = " ".join(head.classes[values[head.name][i]] for head in heads).split()
    middle = (len(words) + 1) // 2
    return " ".join(words) if len(words) < 3 else " ".join(words[:middle]) + "\n" + " ".join(words[middle:])


def _mistakes(data: LabData, classifier: Classifier) -> figures.Figure:
    """The test images that are wrong, then those whose truth got the lowest probability."""
    split = data.splits["test"]
    answers = Answers.joined(classifier.answers)
    predicted, targets, truth = answers.predicted, answers.targets, answers.truth
    wrong = ~answers.right().all(dim=0)
    rows = (truth - wrong.float()).argsort(stable=True)[:SHOWN]
    captions = []
    for row in rows.tolist():
        if wrong[row]:
            said = [h for h in data.heads if predicted[h.name][row] != targets[h.name][row]]
            lines = [
                f"{h.name}: {h.classes[targets[h.name][row]]}, said {h.classes[predicted[h.name][row]]}"
                if len(data.heads) > 1 or not h.parts
                else f"{h.classes[targets[h.name][row]]}\nsaid {h.classes[predicted[h.name][row]]}"
                for h in said
            ]
            captions.append("\n".join(lines))
        else:
            captions.append(f"{_classes(data.heads, targets, row)}\n{truth[row]:.1%} sure")
    title = (
        f"{int(wrong.sum()):,} of {len(split):,} test images wrong (orange), then the least sure of the truth"
    )
    return figures.images(split.images(rows).numpy(), captions, title, marked=wrong[rows].tolist())


def _curves(rows: list[Row], heads: tuple[Head, ...]) -> figures.Figure:
    stages = [stage for stage in ("train", "val") if f"{stage}_loss" in rows[0]]

    def lines(what: str, whole: str, whole_key: str) -> dict[str, dict[str, list[float]]]:
        keys = {whole: whole_key} if len(heads) > 1 else {}
        keys |= {head.name: f"{head.name}_{what}" for head in heads}
        return {
            name: {stage: [row[f"{stage}_{key}"] for row in rows] for stage in stages}
            for name, key in keys.items()
        }

    return figures.curves(
        lines("loss", "weighted sum", "loss"), lines("accuracy", "all heads right", "joint_accuracy")
    )


def _f_scores(heads: tuple[Head, ...], values: dict[str, dict[str, Tensor]]) -> figures.Figure:
    scores = {head.name: values[head.name]["class_f1"].cpu().numpy() for head in heads}
    if len(heads) == 1 and heads[0].parts:
        head = heads[0]
        return figures.grouped_f_scores(
            scores[head.name], head.name, [(p.name, p.classes) for p in head.parts]
        )
    return figures.f_scores(scores, {head.name: head.classes for head in heads})


def closing_lines(log: Log, folder: Path, summary: Summary) -> None:
    """The result on the console: a row a head, the data's honesty, time, folder, and what to do next."""
    table = Table("head", box=None, pad_edge=False, header_style="bold")
    for column in ("accuracy", "F1", "precision", "recall", "worst class", "its recall"):
        table.add_column(column, justify="right")
    for name, head in summary["test"]["heads"].items():
        scores = [page.percent(head[score]) for score in ("accuracy", "f1", "precision", "recall")]
        table.add_row(name, *scores, head["worst_class"], page.percent(head["worst_recall"]))
    data = summary["data"]
    log.say("")
    log.say(table)
    distinct = ", ".join(
        f"{data[f'distinct_{name}']:,} of {data[name]:,} {name}" for name in ("train", "val", "test")
    )
    lines = [
        "",
        f"all heads right  {page.percent(summary['test']['joint_accuracy'])} of {data['test']:,} test images",
        f"distinct images  {distinct}; in more than one split: {data['overlap']}",
        f"time             {summary['train_seconds']} s training, {summary['images_per_second']:,} images/s",
        f"run folder       {folder}",
        f"page             {folder / 'report.html'}",
        f"explain it       python -m cnnlab.explain run={folder}",
    ]
    log.say("\n".join(lines))
