"""What a run leaves behind: its summary, tables, pictures, the page, and the lines on the console."""

from __future__ import annotations

import logging
import math
import re
import shlex
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.table import Table
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cnnlab import hardware, html, plots
from cnnlab.callbacks.checkpoint import load_checkpoint
from cnnlab.callbacks.metrics_history import MetricsHistory, Row
from cnnlab.data.datamodule import ImageDataModule
from cnnlab.io import to_csv, write_atomically, write_json
from cnnlab.log import as_text
from cnnlab.models.classifier import Classifier
from cnnlab.models.heads import Head
from cnnlab.models.layers import parameter_counts
from cnnlab.models.metrics import Predictions, classification_scores
from cnnlab.runs import Run, commit, title, versions

SHOWN = 24  # pictures in a grid
Scores = dict[str, dict[str, Tensor]]  # {head: what `classification_scores` gives}
Summary = dict[str, Any]
log = logging.getLogger(__name__)


class RunReport:
    """A run's folder while it is written: `config.yaml`, `model.txt` and an unfinished `summary.json` when it
    begins, everything else when it has finished."""

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        trainer: L.Trainer,
        classifier: Classifier,
        datamodule: ImageDataModule,
    ) -> None:
        self.config, self.folder, self.trainer = config, folder, trainer
        self.classifier, self.datamodule = classifier, datamodule
        self.summary: Summary = {}

    @property
    def rows(self) -> list[Row]:
        """The rows of `metrics.csv`."""
        histories = [callback for callback in self.trainer.callbacks if isinstance(callback, MetricsHistory)]  # type: ignore[attr-defined]
        return histories[0].rows if histories else []

    @property
    def best(self) -> Path | None:
        """The best checkpoint; None where none was written, as in a trial run of one batch."""
        path = self.folder / "checkpoints" / "best.ckpt"
        return path if path.is_file() else None

    def begin(self) -> None:
        """Write what is known before the training, and say what is trained on what."""
        if not self.trainer.is_global_zero:
            return
        several = f", {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        machine = f"{hardware.description()}{several}, {self.trainer.precision}"
        tests = self._tests_before()
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        write_atomically(self.folder / "model.txt", model_text(self.classifier, self.datamodule.image_shape))
        self.summary = {
            "status": "unfinished",
            "experiment": self.config.experiment,
            "title": title(self.config),
            "seed": self.config.seed,
            "versions": versions(),
            "commit": commit(),
            "machine": machine,
            "parameters": parameter_counts(self.classifier.net),
            "test_evaluations": tests,
        }
        write_json(self.folder / "summary.json", self.summary)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(OmegaConf.to_container(self.config, resolve=True))  # type: ignore[arg-type]
        log.info(f"{self.summary['title']}, seed {self.config.seed}: {machine}")

    def interrupted(self) -> None:
        """Write that the run was interrupted, and say how to go on."""
        if self.trainer.is_global_zero and self.folder.is_dir():
            with suppress(OSError):  # on a full disk the command to go on with is still said
                write_json(self.folder / "summary.json", {**self.summary, "status": "interrupted"})
            log.info(f"\ninterrupted; go on with: {_command('train', 'resume', self.folder)}")

    def failed(self, error: Exception) -> None:
        """Write that the run failed and why, with the traceback in `log.txt`; where that can be written at all."""
        if self.trainer.is_global_zero and self.folder.is_dir():
            with suppress(OSError):
                write_json(self.folder / "summary.json", {**self.summary, "status": "failed", "error": str(error)})
                with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)

    def finish(self) -> None:
        """Write the results, the pictures and `report.html` of a run that has been tested, and say them."""
        predictions = self.classifier.collector.predictions()  # of all processes: each takes part
        means = self.classifier.test_means.compute()
        if not self.trainer.is_global_zero:
            return
        rows = self.rows
        steps = sum(row["seconds"] for row in rows)
        images = int(self.classifier.train_means.images) * self.trainer.world_size * len(rows)
        scores = {
            head.name: classification_scores(
                predictions.predicted[head.name], predictions.targets[head.name], len(head.classes)
            )
            for head in self.datamodule.heads
        }
        self.summary |= {
            "status": "finished",
            "test_evaluations": self.summary["test_evaluations"] + 1,
            "data": self.datamodule.counts(epochs=max(1, len(rows))),
            "epochs": len(rows),
            "train_seconds": round(sum(row["seconds"] + row["val_seconds"] for row in rows), 1),
            "images_per_second": round(images / steps) if steps else None,
            "best_epoch": load_checkpoint(self.best)["epoch"] + 1 if self.best else len(rows),
            "test": test_results(self.datamodule.heads, means, predictions, scores),
        }
        self.write_pages(predictions, scores)
        write_json(self.folder / "summary.json", self.summary)
        (self.folder / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
        log_figures(self.trainer.loggers, self.folder / "figures")
        log.info(closing_lines(self.folder, self.summary))

    def _tests_before(self) -> int:
        """How often the run has met the test split; 0 for a new one."""
        if not (self.folder / "config.yaml").is_file():
            return 0
        return int(Run(self.folder).summary.get("test_evaluations", 0))

    def write_pages(self, predictions: Predictions, scores: Scores) -> None:
        """Write the tables, the pictures and the page of a tested network."""
        pictures = self.folder / "figures"
        pictures.mkdir(exist_ok=True)
        heads, rows = self.datamodule.heads, self.rows
        _write_tables(self.folder, heads, scores)
        drawn = {
            "samples": _samples(self.datamodule),
            "mistakes": _mistakes(self.datamodule, predictions),
            "f_scores": _f_scores(heads, scores),
        }
        if rows:
            drawn |= _by_epoch(rows, heads)
        if len(heads) > 1:
            drawn["by_class"] = plots.by_class(self.summary["test"]["by_class"])
        for head in heads:
            parts = [(part.name, part.classes) for part in head.parts]
            counts = scores[head.name]["confusion"].numpy()
            drawn[f"confusion_{head.name}"] = plots.confusion(counts, head.classes, head.name, parts)
        for name, figure in drawn.items():
            plots.save(figure, pictures / f"{name}.png")
        page = html.render(
            "report.html",
            summary=self.summary,
            figures=pictures,
            command=_command("explain", "run", self.folder),
            model=(self.folder / "model.txt").read_text(encoding="utf-8"),
            config=(self.folder / "config.yaml").read_text(encoding="utf-8"),
        )
        write_atomically(self.folder / "report.html", page)


def model_text(classifier: Classifier, image_shape: Iterable[int]) -> str:
    """Lightning's table of layers, by the names that users say, and the totals as Keras counts them."""
    classifier.example_input_array = torch.zeros(1, *image_shape, device=classifier.device)
    table = str(ModelSummary(classifier, max_depth=-1)).partition("\n\n")[0]
    classifier.example_input_array = None
    lines = [
        line.replace("| net.", "| ", 1).rstrip() for line in table.splitlines() if "| net." in line or "| Name" in line
    ]
    counts = parameter_counts(classifier.net)
    totals = f"{counts['total']:,} parameters: {counts['trainable']:,} trainable, {counts['non_trainable']:,} not"
    return "\n".join([*lines, "", totals]) + "\n"


def test_results(heads: Iterable[Head], means: dict[str, float], predictions: Predictions, scores: Scores) -> Summary:
    """`summary.json`'s "test": accuracies and scores in [0, 1], of the whole network and of each head."""
    heads = tuple(heads)
    found: Summary = {}
    for head in heads:
        values = scores[head.name]
        worst = int(values["class_recall"].argmin())
        found[head.name] = {
            "accuracy": means[f"{head.name}/acc"],
            # To 6 digits: the means over classes are float32, and of nothing but ones they are not quite 1.
            **{name: round(values[name].item(), 6) for name in ("f1", "precision", "recall")},
            "worst_class": head.classes[worst],
            "worst_recall": values["class_recall"][worst].item(),
        }
    results = {"images": means["images"], "joint_accuracy": means["acc"], "loss": means["loss"], "heads": found}
    return results | ({"by_class": _by_class(heads, predictions)} if len(heads) > 1 else {})


def _by_class(heads: tuple[Head, ...], predictions: Predictions) -> dict[str, dict[str, dict[str, float]]]:
    """{head: {class: {"joint_accuracy" and each head's name: accuracy on the test images of that class}}}."""
    right = predictions.correct()
    rows = {"joint_accuracy": right.all(dim=0), **dict(zip(predictions.predicted, right, strict=True))}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for head in heads:
        for number, name in enumerate(head.classes):
            these = predictions.targets[head.name] == number
            if these.any():
                scores = {row: values[these].double().mean().item() for row, values in rows.items()}
                found.setdefault(head.name, {})[name] = scores
    return found


def _by_epoch(rows: list[Row], heads: tuple[Head, ...]) -> dict[str, plots.Figure]:
    """Learning curves; the weights of the losses, where they were learned; what callbacks logged of the heads."""
    drawn = {"curves": _curves(rows, heads)}
    weights = {head.name: [row[f"train/{head.name}/weight"] for row in rows] for head in heads}
    if any(len(set(values)) > 1 for values in weights.values()):
        drawn["weights"] = plots.weights(weights)
    stage = "val" if any("val/loss" in row for row in rows) else "train"
    keys = {head.name: f"{stage}/{head.name}/grad_cam_rank_accuracy" for head in heads}
    if any(key in row for row in rows for key in keys.values()):
        lines = {name: [row.get(key, math.nan) for row in rows] for name, key in keys.items()}
        drawn["grad_cam"] = plots.rank_accuracy(lines)
    return drawn


def _write_tables(folder: Path, heads: tuple[Head, ...], values: dict[str, dict[str, Tensor]]) -> None:
    classes: list[dict[str, Any]] = []
    for head in heads:
        value = values[head.name]
        confusion = value["confusion"].tolist()
        write_atomically(
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
    write_atomically(folder / "classes.csv", to_csv(classes))


def _samples(data: ImageDataModule) -> plots.Figure:
    split = data.splits["train"]
    rows = torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long()
    targets = split.targets(rows)
    captions = [_classes(data.heads, targets, i) for i in range(len(rows))]
    return plots.images(split.images(rows).numpy(), captions, "Training images")


def _classes(heads: tuple[Head, ...], values: dict[str, Tensor], i: int) -> str:
    words = " ".join(head.classes[values[head.name][i]] for head in heads).split()
    middle = (len(words) + 1) // 2
    return " ".join(words) if len(words) < 3 else " ".join(words[:middle]) + "\n" + " ".join(words[middle:])


def _mistakes(data: ImageDataModule, predictions: Predictions) -> plots.Figure:
    """The test images that are wrong, then those whose truth got the lowest probability."""
    split = data.splits["test"]
    predicted, targets, truth = predictions.predicted, predictions.targets, predictions.truth_probability
    wrong = ~predictions.correct().all(dim=0)
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
    title = f"{int(wrong.sum()):,} of {len(wrong):,} test images wrong (orange), then the least sure of the truth"
    return plots.images(split.images(rows).numpy(), captions, title, marked=wrong[rows].tolist())


def _curves(rows: list[Row], heads: tuple[Head, ...]) -> plots.Figure:
    def lines(what: str, whole: str) -> dict[str, dict[str, list[float]]]:
        keys = {whole: what} if len(heads) > 1 else {}
        keys |= {head.name: f"{head.name}/{what}" for head in heads}
        stages = [stage for stage in ("train", "val") if any(f"{stage}/loss" in row for row in rows)]
        return {
            name: {stage: [row.get(f"{stage}/{key}", math.nan) for row in rows] for stage in stages}
            for name, key in keys.items()
        }

    return plots.curves(lines("loss", "weighted sum"), lines("acc", "all heads right"))


def _f_scores(heads: tuple[Head, ...], values: dict[str, dict[str, Tensor]]) -> plots.Figure:
    scores = {head.name: values[head.name]["class_f1"].cpu().numpy() for head in heads}
    if len(heads) == 1 and heads[0].parts:
        head = heads[0]
        return plots.grouped_f_scores(scores[head.name], head.name, [(p.name, p.classes) for p in head.parts])
    return plots.f_scores(scores, {head.name: head.classes for head in heads})


def log_figures(loggers: Iterable[Logger], folder: Path) -> None:
    """Send the pictures in `folder` to the loggers that take pictures: TensorBoard, MLflow, Weights & Biases."""
    pictures = sorted(folder.glob("*.png"))
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        for picture in pictures:
            if hasattr(experiment, "add_image"):  # TensorBoard
                with Image.open(picture) as image:
                    experiment.add_image(f"figures/{picture.stem}", pil_to_tensor(image.convert("RGB")))
            elif hasattr(experiment, "log_artifact") and hasattr(logger, "run_id"):  # MLflow
                experiment.log_artifact(logger.run_id, str(picture), "figures")
            elif hasattr(logger, "log_image"):  # Weights & Biases
                logger.log_image(f"figures/{picture.stem}", [str(picture)])
        if hasattr(experiment, "finish"):  # of a sweep each job is a run of its own
            experiment.finish()
        elif hasattr(experiment, "close"):
            experiment.close()


def closing_lines(folder: Path, summary: Summary) -> str:
    """The result on the console: a row a head, the data's honesty, time, folder, and what to do next."""
    table = Table("head", box=None, pad_edge=False, header_style="bold")
    for column in ("accuracy", "F1", "precision", "recall", "worst class", "its recall"):
        table.add_column(column, justify="right")
    narrow = get_terminal_size().columns < 72
    for name, head in summary["test"]["heads"].items():
        scores = [html.percent(head[score]) for score in ("accuracy", "f1", "precision", "recall")]
        table.add_row(name, *scores, head["worst_class"], html.percent(head["worst_recall"]))
    data, test = summary["data"], summary["test"]
    distinct = ", ".join(f"{data[f'distinct_{name}']:,} of {data[name]:,} {name}" for name in ("train", "val", "test"))
    rate = summary["images_per_second"]
    lines = [
        "",
        "\n".join(f"{name} {html.percent(head['accuracy'])}" for name, head in test["heads"].items())
        if narrow
        else as_text(table),
        "",
        f"all heads right  {html.percent(test['joint_accuracy'])} of {test['images']:,.0f} test images",
        f"distinct images  {distinct}; in more than one split: {data['overlap']}",
        f"time             {summary['train_seconds']} s training" + (f", {rate:,} images/s" if rate else ""),
        f"run folder       {folder}",
        f"page             {folder / 'report.html'}",
        f"explain it       {_command('explain', 'run', folder)}",
    ]
    return "\n".join(lines)


def _command(module: str, setting: str, folder: Path) -> str:
    """A command line with a folder in it that can be typed back, whatever the folder is called."""
    plain = re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII)
    value = str(folder) if plain else "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"python -m cnnlab.{module} {setting}={value if plain else shlex.quote(value)}"
