"""The content of a run folder: configuration, summary, tables, figures and `report.html`."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from cnnlab import plots
from cnnlab.data.datamodule import ImageDataModule, sample_indices
from cnnlab.interpret.layer_table import layer_table, layer_text
from cnnlab.interpret.ood import CALIBRATION, OOD, REFERENCE, fit_ood_detector
from cnnlab.models.heads import Head, heads_to_json
from cnnlab.models.layers import parameter_counts
from cnnlab.reporting.html import join_words, render
from cnnlab.run import RunFolder, title
from cnnlab.training.callbacks import MetricsHistory, Row
from cnnlab.training.classifier import Classifier
from cnnlab.training.metrics import Predictions, Scores
from cnnlab.utils import hardware
from cnnlab.utils.checkpoints import checkpoint_path, load_checkpoint, save_tensors
from cnnlab.utils.console import as_table, command_line, percent
from cnnlab.utils.errors import one_line
from cnnlab.utils.io import to_csv, write_atomically, write_json
from cnnlab.utils.versions import commit, versions

Summary = dict[str, Any]
SHOWN = 12  # images in a grid
log = logging.getLogger(__name__)


class RunReport:
    """Writes a run folder: `config.yaml`, `model.txt` and an unfinished `summary.json` when a run begins, the rest when
    it has been tested."""

    def __init__(
        self, config: DictConfig, folder: Path, trainer: L.Trainer, classifier: Classifier, datamodule: ImageDataModule
    ) -> None:
        self.config, self.folder, self.trainer = config, folder, trainer
        self.classifier, self.datamodule = classifier, datamodule
        self.summary: Summary = {}
        self.counts: dict[str, int] | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows of `metrics.csv`."""
        histories = [callback for callback in self.trainer.callbacks if isinstance(callback, MetricsHistory)]  # type: ignore[attr-defined]
        return histories[0].rows if histories else []

    @property
    def best(self) -> Path | None:
        """The best checkpoint, or None, as in a trial run."""
        path = checkpoint_path(self.folder, "best")
        return path if path.is_file() else None

    @property
    def is_trial(self) -> bool:
        """Whether this is a `fast_dev_run` of a few batches."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    @property
    def epochs(self) -> int:
        """How many epochs were begun."""
        return int(self.trainer.fit_loop.epoch_progress.current.ready)

    def keep_last_where_none_is_best(self) -> None:
        """Keep the last weights as the best where no checkpoint was chosen on validation, so that the run opens."""
        path, callbacks = checkpoint_path(self.folder, "best"), self.trainer.callbacks  # type: ignore[attr-defined]
        chosen = any(isinstance(c, ModelCheckpoint) and c.monitor and c.best_model_path for c in callbacks)
        missing = not (chosen and path.is_file())  # one from before the run went on is not the last
        if self.trainer.world_size > 1:  # all processes save together, or none
            missing = self.trainer.strategy.reduce_boolean_decision(missing, all=False)
        if missing and not self.is_trial:
            self.trainer.save_checkpoint(path)
            log.info("no checkpoint was chosen on validation: the last weights are kept and tested")

    def begin(self) -> None:
        """Write everything known before the training."""
        if not self.trainer.is_global_zero:
            return
        self.counts = self.datamodule.counts() if self.datamodule.counts_first else None
        several = f", {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        machine = f"{hardware.description(self.trainer.strategy.root_device)}{several}, {self.trainer.precision}"
        tests = self._tests_before()
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        net = self.classifier.net
        write_atomically(self.folder / "model.txt", layer_text(net, layer_table(net, self.datamodule.image_shape)))
        checkpoint_path(self.folder, OOD).unlink(missing_ok=True)  # it is of other weights
        self.summary = {
            "status": "unfinished",
            "experiment": self.config.experiment,
            "title": title(self.config),
            "seed": self.config.seed,
            "task": {
                "heads": heads_to_json(self.datamodule.heads),
                "image_shape": self.datamodule.image_shape,
                "input_type": self.datamodule.input_type,
            },
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
        """Write that the run was interrupted, and print how to go on."""
        close_loggers(self.trainer.loggers)
        if self.trainer.is_global_zero and self.folder.is_dir():
            with suppress(OSError):  # a full disk
                write_json(self.folder / "summary.json", {**self.summary, "status": "interrupted"})
            log.info(f"\ninterrupted; go on with: {command_line('train', 'resume', self.folder)}")

    def failed(self, error: Exception) -> None:
        """Write that the run failed and why, with the traceback in `log.txt`."""
        close_loggers(self.trainer.loggers)
        if self.trainer.is_global_zero and self.folder.is_dir():
            with suppress(OSError):
                write_json(self.folder / "summary.json", {**self.summary, "status": "failed", "error": str(error)})
                with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)

    def finish(self) -> None:
        """Write the results of a run that has been tested, and print them."""
        metrics = self.classifier.test_metrics.compute()  # of all processes: each takes part
        if not self.trainer.is_global_zero:
            return
        rows, heads, folder = self.rows, self.datamodule.heads, self.folder
        predictions, scores = self.classifier.predictions, self.classifier.scores
        steps = sum(row["seconds"] for row in rows)
        images = sum(row.get("train/images", 0) for row in rows)
        kept = load_checkpoint(self.best) if self.best else {}
        best = min(kept.get("epoch", self.epochs) + 1, self.epochs)
        self.summary |= {
            "status": "trial" if self.is_trial else "finished",
            "test_evaluations": self.summary["test_evaluations"] + 1,
            "data": self.counts or self.datamodule.counts(epochs=max(1, self.epochs)),
            "epochs": self.epochs,
            "train_seconds": round(sum(row["seconds"] + row["val_seconds"] for row in rows), 1),
            "images_per_second": round(images / steps) if steps else None,
            "best_epoch": best,
            "accuracy": learned_accuracies(rows, best, heads, kept.get("val_metrics", {})),
            "test": summarize_test(heads, metrics["loss"].item(), predictions, scores),
        }
        classes = class_rows(heads, scores)
        write_atomically(folder / "classes.csv", to_csv(classes))
        for head in heads:
            counts = zip(head.classes, scores[head.name]["confusion"].tolist(), strict=True)
            table = [{"true": name, **dict(zip(head.classes, row, strict=True))} for name, row in counts]
            write_atomically(folder / f"confusion_{head.name}.csv", to_csv(table))
        write_figures(folder / "figures", self.classifier.net, self.datamodule, rows, predictions, scores)
        if self.best:
            self._keep_training_features()
        page = render(
            "report.html",
            summary=self.summary,
            sentences=summary_sentences(self.summary),
            figures=folder / "figures",
            drawn=lambda name: (folder / "figures" / f"{name}.png").is_file(),
            classes=classes,
            absent=absent_classes(self.summary["test"]),
            command=command_line("explain", "run", folder),
            model=(folder / "model.txt").read_text(encoding="utf-8"),
            config=(folder / "config.yaml").read_text(encoding="utf-8"),
        )
        write_atomically(folder / "report.html", page)
        write_json(folder / "summary.json", self.summary)
        checkpoint_path(folder, "previous").unlink(missing_ok=True)
        log_figures(self.trainer.loggers, folder / "figures")
        close_loggers(self.trainer.loggers)
        log.info(closing_lines(folder, self.summary, self.config.train_heads))

    def _keep_training_features(self) -> None:
        """Write the out-of-distribution detector, calibrated on validation images, or on other training images."""
        train, val = self.datamodule.splits["train"], self.datamodule.splits["val"]
        most = max(2, 300_000_000 // math.prod(self.datamodule.image_shape))  # of large images fewer fit into memory
        if len(val):
            known = train.inputs(sample_indices(len(train), min(len(train), REFERENCE, most)))
            others = val.inputs(sample_indices(len(val), min(len(val), CALIBRATION, most)))
        else:
            rows = sample_indices(len(train), min(len(train), 2 * REFERENCE, most))
            known, others = train.inputs(rows[::2]), train.inputs(rows[1::2] if len(rows) > 1 else rows)
        try:
            detector = fit_ood_detector(self.classifier.net, known, others)
        except (RuntimeError, IndexError) as error:  # a convolution may look at something else than the images
            log.info(f"predict will not tell which images are unlike the training images: {one_line(error)}")
            return
        save_tensors(checkpoint_path(self.folder, OOD), vars(detector))

    def _tests_before(self) -> int:
        """Return how often the run has used the test split."""
        if not (self.folder / "config.yaml").is_file():
            return 0
        return int(RunFolder(self.folder).summary.get("test_evaluations", 0))


def learned_accuracies(
    rows: Sequence[Row], epoch: int, heads: Sequence[Head], validated: Row
) -> dict[str, dict[str, float]]:
    """Return {"train" and "val": {"joint" and each head's name: accuracy}} of an epoch, from `metrics.csv`, and of the
    validation of the kept weights, which may lie within the epoch. Training accuracy is measured while the weights
    still change."""
    row = {**next((row for row in rows if row["epoch"] == epoch), Row()), **validated}
    keys = {"joint": "acc", **{head.name: f"{head.name}/acc" for head in heads}}
    return {
        stage: {name: row[f"{stage}/{key}"] for name, key in keys.items() if f"{stage}/{key}" in row}
        for stage in ("train", "val")
    }


def summarize_test(heads: Sequence[Head], loss: float, predictions: Predictions, scores: Scores) -> Summary:
    """Return `summary.json`'s "test": accuracies and scores in [0, 1] of the whole network and of each head."""
    correct, summaries = predictions.correct(), Summary()
    for head, right in zip(heads, correct, strict=True):
        values = scores[head.name]
        worst = int(values["class_recall"].nan_to_num(nan=torch.inf).argmin())
        images = values["confusion"].sum(dim=1).tolist()
        summaries[head.name] = {
            "accuracy": right.double().mean().item(),
            # To 6 digits: the means over classes are float32, and of ones they are not quite 1.
            **{name: round(values[name].item(), 6) for name in ("f1", "precision", "recall")},
            "worst_class": head.classes[worst],
            "worst_recall": values["class_recall"][worst].item(),
            "absent_classes": [name for name, count in zip(head.classes, images, strict=True) if not count],
        }
    joint = correct.all(dim=0).double().mean().item()
    results = {"images": correct.shape[1], "joint_accuracy": joint, "loss": loss, "heads": summaries}
    return {**results, "by_class": accuracies_by_class(heads, predictions)}


def accuracies_by_class(heads: Sequence[Head], predictions: Predictions) -> dict[str, dict[str, dict[str, float]]]:
    """Return {head: {class: {"joint_accuracy" and each head's name: accuracy on the test images of that class}}}."""
    right = predictions.correct()
    rows = {"joint_accuracy": right.all(dim=0), **dict(zip(predictions.predicted, right, strict=True))}
    accuracies: dict[str, dict[str, dict[str, float]]] = {}
    for head in heads:
        for number, name in enumerate(head.classes):
            members = predictions.targets[head.name] == number
            if members.any():
                accuracies_of_class = {row: values[members].double().mean().item() for row, values in rows.items()}
                accuracies.setdefault(head.name, {})[name] = accuracies_of_class
    return accuracies


def absent_classes(test: Summary) -> dict[str, str]:
    """Return {head: "no test image of ..."} of the heads with classes that have no test image."""
    absent = {name: head.get("absent_classes", []) for name, head in test["heads"].items()}
    return {name: f"no test image of {join_words(classes)}" for name, classes in absent.items() if classes}


def class_rows(heads: Sequence[Head], scores: Scores) -> list[dict[str, Any]]:
    """Return a row per class: precision, recall and F1 in [0, 1] (None without images), its number of images, and the
    class that it is most often taken for."""
    rows: list[dict[str, Any]] = []
    for head in heads:
        values, confusion = scores[head.name], scores[head.name]["confusion"]
        mistakes = confusion.clone().fill_diagonal_(0)
        for i, name in enumerate(head.classes):
            support = int(confusion[i].sum())
            by_score = {s: values[f"class_{s}"][i].item() if support else None for s in ("precision", "recall", "f1")}
            taken_for = head.classes[int(mistakes[i].argmax())] if mistakes[i].any() else ""
            rows.append({"head": head.name, "class": name, **by_score, "support": support, "taken_for": taken_for})
    return rows


def summary_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return the result of a run, and whether its test images are new to it."""
    test, data = summary["test"], summary["data"]
    heads = list(test["heads"])
    subject = "All heads are" if len(heads) > 1 else f"The {heads[0]} is"
    sentences = [f"{subject} right on {percent(test['joint_accuracy'])} of {int(test['images']):,} test images."]
    if data["test_in_train"]:
        sentences.append(
            f"{data['test_in_train']:,} of the {data['test']:,} test images are also training images. The accuracy "
            "says little about new images."
        )
    elif data["overlap"]:
        sentences.append(f"{data['overlap']:,} images are in more than one split.")
    elif summary["epochs"]:
        sentences.append("None of these test images is also in the training or validation set.")
    return sentences


def closing_lines(folder: Path, summary: Summary, train_heads: Sequence[str] = ()) -> str:
    """Return the result for the console. If only some heads were trained, also how all heads do by their classes."""
    table = [["head", "accuracy", "F1", "precision", "recall", "worst class", "its recall"]]
    for name, head in summary["test"]["heads"].items():
        scores = [percent(head[score]) for score in ("accuracy", "f1", "precision", "recall")]
        perfect = head["worst_recall"] == 1
        table.append(
            [name, *scores, *(["–", "–"] if perfect else [head["worst_class"], percent(head["worst_recall"])])]
        )
    narrow = get_terminal_size().columns < 72
    data, test = summary["data"], summary["test"]
    distinct = ", ".join(f"{data[f'distinct_{name}']:,} of {data[name]:,} {name}" for name in ("train", "val", "test"))
    rate = summary["images_per_second"]
    right = "all heads right" if len(table) > 2 else "right"
    lines = {right: f"{percent(test['joint_accuracy'])} of {test['images']:,.0f} test images"}
    learned = {stage: values["joint"] for stage, values in summary["accuracy"].items() if values}
    if learned:
        words = {"train": "right in training", "val": "on validation"}
        shares = ", ".join(f"{percent(share)} {words[stage]}" for stage, share in learned.items())
        lines[f"epoch {summary['best_epoch']}"] = shares
    for name, absent in absent_classes(test).items():
        lines[f"! {name}"] = f"{absent}; their scores are not counted"
    if data["test_in_train"]:
        lines["! not new"] = f"{data['test_in_train']:,} of {data['test']:,} test images are also training images"
    for head in train_heads if "by_class" in test else ():
        shares = test["by_class"][head].items()
        lines[f"… by {head}"] = ", ".join(f"{name} {percent(share['joint_accuracy'])}" for name, share in shares)
    lines |= {
        "distinct images": f"{distinct}; in more than one split: {data['overlap']}",
        "time": f"{summary['train_seconds']} s training" + (f", {rate:,} images/s" if rate else ""),
        "run folder": str(folder),
        "page": str(folder / "report.html"),
        "explain it": command_line("explain", "run", folder),
    }
    if summary["status"] == "trial":
        lines["explain it"] = "not possible: a trial run keeps no weights"
    head_table = as_table([row[:2] for row in table[1:]] if narrow else table)
    return "\n".join(["", head_table, "", *(f"{name:16} {text}" for name, text in lines.items())])


def log_figures(loggers: Iterable[Logger], folder: Path) -> None:
    """Send the figures in `folder` to TensorBoard, MLflow, and Weights & Biases."""
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


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the loggers' runs, so that the next job of a sweep in this process begins its own."""
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "finish"):  # Weights & Biases
            experiment.finish()
        elif hasattr(experiment, "close"):
            experiment.close()


def write_figures(
    folder: Path, net: nn.Module, data: ImageDataModule, rows: list[Row], predictions: Predictions, scores: Scores
) -> None:
    """Write the figures of a tested network as PNGs; `rows` come from `metrics.csv`."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):  # of a run that went on
        old.unlink()
    heads = data.heads
    layers = layer_table(net, data.image_shape)
    figures = {
        "samples": _samples(data),
        "mistakes": _mistakes(data, predictions),
        "architecture": plots.architecture(layers, f"{parameter_counts(net)['total']:,} parameters"),
    }
    if rows:
        figures |= _by_epoch(rows, heads)
    f1 = {head.name: scores[head.name]["class_f1"].cpu().numpy() for head in heads}
    figures["f_scores"] = plots.f_scores(f1, {head.name: head.classes for head in heads})
    for head in heads:
        counts = scores[head.name]["confusion"].numpy()
        figures[f"confusion_{head.name}"] = plots.confusion(counts, head.classes, head.name)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def _by_epoch(rows: list[Row], heads: Sequence[Head]) -> dict[str, plots.Figure]:
    """Return learning curves, and the weights of the losses and the Grad-CAM monitor's values where there are any."""
    stages = [stage for stage in ("train", "val") if any(f"{stage}/loss" in row for row in rows)]

    def lines(metric: str, whole: str) -> dict[str, dict[str, list[float]]]:
        keys = {whole: metric} if len(heads) > 1 else {}
        keys |= {head.name: f"{head.name}/{metric}" for head in heads}
        return {
            name: {stage: [row.get(f"{stage}/{key}", math.nan) for row in rows] for stage in stages}
            for name, key in keys.items()
        }

    rates = [row["lr"] for row in rows]
    figures = {"curves": plots.curves(lines("loss", "weighted sum"), lines("acc", "all heads right"), rates)}
    weights = {head.name: [row[f"train/{head.name}/weight"] for row in rows] for head in heads}
    if any(len(set(values)) > 1 for values in weights.values()):
        figures["weights"] = plots.by_epoch(weights, "weight of the loss", logarithmic=True)
    keys = {head.name: f"{stages[-1]}/{head.name}/grad_cam_rank_accuracy" for head in heads}
    if any(key in row for row in rows for key in keys.values()):
        ranks = {name: [row.get(key, math.nan) for row in rows] for name, key in keys.items()}
        figures["grad_cam"] = plots.by_epoch(ranks, "rank accuracy of Grad-CAM")
    return figures


def _samples(data: ImageDataModule) -> plots.Figure:
    split = data.splits["train"]
    rows = torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long()
    targets = split.targets(rows)
    captions = [_classes(data.heads, targets, i) for i in range(len(rows))]
    return plots.images(split.images(rows).numpy(), captions, "Training images")


def _classes(heads: Sequence[Head], values: dict[str, Tensor], i: int) -> str:
    """Return the classes of image `i` on one line or two."""
    words = " ".join(head.classes[values[head.name][i]] for head in heads).split()
    middle = (len(words) + 1) // 2
    return " ".join(words) if len(words) < 3 else " ".join(words[:middle]) + "\n" + " ".join(words[middle:])


def _mistakes(data: ImageDataModule, predictions: Predictions) -> plots.Figure:
    """Draw the wrong test images, then the right ones with the lowest probability."""
    split = data.splits["test"]
    predicted, targets, sure = predictions.predicted, predictions.targets, predictions.true_probability
    wrong = ~predictions.correct().all(dim=0)
    rows = (sure - wrong.float()).argsort(stable=True)[:SHOWN]
    captions = []
    for row in rows.tolist():
        if not wrong[row]:
            captions.append(f"{_classes(data.heads, targets, row)}\n{percent(sure[row].item())} sure")
            continue
        lines = []
        for head in data.heads:
            true, answer = (head.classes[values[head.name][row]] for values in (targets, predicted))
            if true != answer:
                lines.append(f"{true}\nsaid {answer}" if head.parts else f"{head.name}: {true}, said {answer}")
        captions.append("\n".join(lines))
    title = f"{int(wrong.sum()):,} of {len(wrong):,} test images wrong"
    return plots.images(split.images(rows).numpy(), captions, title, marked=wrong[rows].tolist())
