"""What a run leaves behind: its summary, its page, and the lines on the console."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from cnnlab import findings, hardware, html
from cnnlab.callbacks.checkpoint import checkpoint_path, load_checkpoint, save_tensors
from cnnlab.callbacks.metrics_history import MetricsHistory, Row
from cnnlab.data.datamodule import ImageDataModule, sample_indices
from cnnlab.explain.ood import CALIBRATION, REFERENCE, fit_ood_detector
from cnnlab.io import write_atomically, write_json
from cnnlab.log import as_table, command_line, percent
from cnnlab.models.classifier import Classifier
from cnnlab.models.heads import Head
from cnnlab.models.layers import parameter_counts
from cnnlab.models.metrics import Predictions, Scores
from cnnlab.provenance import commit, versions
from cnnlab.run_page import accuracies_by_class, class_rows, write_figures, write_tables
from cnnlab.runs import OOD, Run, title
from cnnlab.task import Task

Summary = dict[str, Any]
log = logging.getLogger(__name__)


class RunReport:
    """A run's folder while it is written: `config.yaml`, `model.txt` and an unfinished `summary.json` when it
    begins, everything else when it has finished."""

    def __init__(
        self, config: DictConfig, folder: Path, trainer: L.Trainer, classifier: Classifier, datamodule: ImageDataModule
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
        path = checkpoint_path(self.folder, "best")
        return path if path.is_file() else None

    @property
    def is_trial(self) -> bool:
        """Whether Lightning's `fast_dev_run` ran a few batches, to see whether the code works."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def keep_last_where_none_is_best(self) -> None:
        """Keep the last weights as the best where no checkpoint was chosen on validation, so that the run opens."""
        path, callbacks = checkpoint_path(self.folder, "best"), self.trainer.callbacks  # type: ignore[attr-defined]
        chosen = any(isinstance(one, ModelCheckpoint) and one.monitor and one.best_model_path for one in callbacks)
        missing = not (chosen and path.is_file())  # one that was kept before the run went on is not the last
        if self.trainer.world_size > 1:  # all processes save together, or none
            missing = self.trainer.strategy.reduce_boolean_decision(missing, all=False)
        if missing and not self.is_trial:
            self.trainer.save_checkpoint(path)
            log.info("no checkpoint was chosen on validation: the last weights are kept and tested")

    @property
    def epochs(self) -> int:
        """How many epochs were begun."""
        return int(self.trainer.fit_loop.epoch_progress.current.ready)

    def begin(self) -> None:
        """Write what is known before the training, and say what is trained on what."""
        if not self.trainer.is_global_zero:
            return
        several = f", {self.trainer.world_size} processes" if self.trainer.world_size > 1 else ""
        machine = f"{hardware.description()}{several}, {self.trainer.precision}"
        tests = self._tests_before()
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        write_atomically(self.folder / "model.txt", model_text(self.classifier, self.datamodule.image_shape))
        checkpoint_path(self.folder, OOD).unlink(missing_ok=True)  # of a run that goes on: it is of other weights
        self.summary = {
            "status": "unfinished",
            "experiment": self.config.experiment,
            "title": title(self.config),
            "seed": self.config.seed,
            "task": Task.of(self.datamodule).facts(),
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
            log.info(f"\ninterrupted; go on with: {command_line('train', 'resume', self.folder)}")

    def failed(self, error: Exception) -> None:
        """Write that the run failed and why, with the traceback in `log.txt`; where that can be written at all."""
        if self.trainer.is_global_zero and self.folder.is_dir():
            with suppress(OSError):
                write_json(self.folder / "summary.json", {**self.summary, "status": "failed", "error": str(error)})
                with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)

    def finish(self) -> None:
        """Write the results, the pictures and `report.html` of a run that has been tested, and say them."""
        means = self.classifier.test_means.compute()  # of all processes: each takes part
        if not self.trainer.is_global_zero:
            return
        rows, heads = self.rows, self.datamodule.heads
        steps = sum(row["seconds"] for row in rows)
        images = int(self.classifier.train_means.images) * self.trainer.world_size * len(rows)
        self.summary |= {
            "status": "trial" if self.is_trial else "finished",
            "test_evaluations": self.summary["test_evaluations"] + 1,
            "data": self.datamodule.counts(epochs=max(1, self.epochs)),
            "epochs": self.epochs,
            "train_seconds": round(sum(row["seconds"] + row["val_seconds"] for row in rows), 1),
            "images_per_second": round(images / steps) if steps else None,
            "best_epoch": min(load_checkpoint(self.best)["epoch"] + 1, self.epochs) if self.best else self.epochs,
            "test": test_results(heads, means, self.classifier.predictions, self.classifier.scores),
        }
        write_tables(self.folder, heads, self.classifier.scores)
        write_figures(
            self.folder / "figures", self.datamodule, rows, self.classifier.predictions, self.classifier.scores
        )
        if self.best:
            self._keep_training_images()
        page = html.render(
            "report.html",
            summary=self.summary,
            findings=findings.of_run(
                self.summary, heads, {head.name: self.classifier.scores[head.name]["confusion"] for head in heads}
            ),
            figures=self.folder / "figures",
            drawn=lambda name: (self.folder / "figures" / f"{name}.png").is_file(),
            classes=class_rows(heads, self.classifier.scores),
            absent=absent_classes(self.summary["test"]),
            command=command_line("explain", "run", self.folder),
            model=(self.folder / "model.txt").read_text(encoding="utf-8"),
            config=(self.folder / "config.yaml").read_text(encoding="utf-8"),
        )
        write_atomically(self.folder / "report.html", page)
        write_json(self.folder / "summary.json", self.summary)
        checkpoint_path(self.folder, "previous").unlink(missing_ok=True)
        log_figures(self.trainer.loggers, self.folder / "figures")
        log.info(closing_lines(self.folder, self.summary, self.config.train_heads))

    def _keep_training_images(self) -> None:
        """Write what tells whether an image is like the training images. How like they must be is found on validation
        images, or, where there are none, on other training images."""
        train, val = self.datamodule.splits["train"], self.datamodule.splits["val"]
        if len(val):
            known = train.inputs(sample_indices(len(train), min(len(train), REFERENCE)))
            others = val.inputs(sample_indices(len(val), min(len(val), CALIBRATION)))
        else:
            rows = sample_indices(len(train), min(len(train), 2 * REFERENCE))
            known, others = train.inputs(rows[::2]), train.inputs(rows[1::2] if len(rows) > 1 else rows)
        try:
            detector = fit_ood_detector(self.classifier.net, known, others)
        except RuntimeError as error:  # a network of one's own may call a convolution on something else than the images
            log.info(
                f"predict will not tell which images are unlike the training images: {' '.join(str(error).split())}"
            )
            return
        save_tensors(checkpoint_path(self.folder, OOD), detector.state())

    def _tests_before(self) -> int:
        """How often the run has met the test split; 0 for a new one."""
        if not (self.folder / "config.yaml").is_file():
            return 0
        return int(Run(self.folder).summary.get("test_evaluations", 0))


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
        worst = int(values["class_recall"].nan_to_num(nan=torch.inf).argmin())
        images = values["confusion"].sum(dim=1).tolist()
        found[head.name] = {
            "accuracy": means[f"{head.name}/acc"],
            # To 6 digits: the means over classes are float32, and of nothing but ones they are not quite 1.
            **{name: round(values[name].item(), 6) for name in ("f1", "precision", "recall")},
            "worst_class": head.classes[worst],
            "worst_recall": values["class_recall"][worst].item(),
            "absent_classes": [name for name, count in zip(head.classes, images, strict=True) if not count],
        }
    results = {"images": means["images"], "joint_accuracy": means["acc"], "loss": means["loss"], "heads": found}
    return results | ({"by_class": accuracies_by_class(heads, predictions)} if len(heads) > 1 else {})


def absent_classes(test: Summary) -> dict[str, str]:
    """Return the classes without a test image, {head: names}, of the heads that have some."""
    absent = {name: head.get("absent_classes", []) for name, head in test["heads"].items()}
    return {name: f"no test image of {html.join_words(classes)}" for name, classes in absent.items() if classes}


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


def closing_lines(folder: Path, summary: Summary, train_heads: Sequence[str] = ()) -> str:
    """The result on the console: a row a head, the data's honesty, time, folder, and what to do next. Where only some
    heads were trained, also how all heads do on the images of each of their classes."""
    table = [["head", "accuracy", "F1", "precision", "recall", "worst class", "its recall"]]
    for name, head in summary["test"]["heads"].items():
        scores = [percent(head[score]) for score in ("accuracy", "f1", "precision", "recall")]
        perfect = head["worst_recall"] == 1
        worst = ["–", "–"] if perfect else [head["worst_class"], percent(head["worst_recall"])]
        table.append([name, *scores, *worst])
    narrow = get_terminal_size().columns < 72
    data, test = summary["data"], summary["test"]
    distinct = ", ".join(f"{data[f'distinct_{name}']:,} of {data[name]:,} {name}" for name in ("train", "val", "test"))
    rate = summary["images_per_second"]
    right = "all heads right" if len(table) > 2 else "right"
    lines = ["", as_table([row[:2] for row in table[1:]] if narrow else table), ""]
    facts = {right: f"{percent(test['joint_accuracy'])} of {test['images']:,.0f} test images"}
    for name, absent in absent_classes(test).items():
        facts[f"! {name}"] = f"{absent}; their scores are not counted"
    for head in train_heads if "by_class" in test else ():
        shares = test["by_class"][head].items()
        facts[f"… by {head}"] = ", ".join(f"{name} {percent(share['joint_accuracy'])}" for name, share in shares)
    facts |= {
        "distinct images": f"{distinct}; in more than one split: {data['overlap']}",
        "time": f"{summary['train_seconds']} s training" + (f", {rate:,} images/s" if rate else ""),
        "run folder": str(folder),
        "page": str(folder / "report.html"),
        "explain it": command_line("explain", "run", folder),
    }
    if summary["status"] == "trial":
        facts["explain it"] = "not possible: a trial run keeps no weights"
    return "\n".join([*lines, *(f"{name:16} {fact}" for name, fact in facts.items())])
