"""The weighted loss, the metrics and a confusion matrix against numbers worked out by hand."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from cnnlab.api import Run
from cnnlab.models.heads import Head
from cnnlab.models.networks import MultiHeadNet
from cnnlab.reporting.run_report import summarize_test
from cnnlab.training.build import build_net
from cnnlab.training.classifier import Classifier
from cnnlab.training.loss_weighting import LossWeighting
from cnnlab.training.metrics import PredictionCollector, Predictions, StageMetrics, classification_scores

SIDE, SHADE = Head("side", ("left", "right")), Head("shade", ("dark", "grey", "light"))


class _Given(MultiHeadNet):
    """A network that answers what the test says."""

    def __init__(self, answers: dict[str, Tensor]) -> None:
        super().__init__((2, 1, 1), (SIDE, SHADE), {"flatten": nn.Flatten()})
        self.answers = answers

    def forward(self, images: Tensor, heads: object = None) -> dict[str, Tensor]:
        return self.answers


ANSWERS = {
    "side": torch.tensor([[0.0], [math.log(3)]]),  # P(right) = 1/2 (says left), 3/4
    "shade": torch.tensor([[math.log(2), 0.0, 0.0], [math.log(2), 0.0, 0.0]]),  # 1/2, 1/4, 1/4
}
BATCH = (torch.zeros(2, 1, 28, 28), {"side": torch.tensor([0, 1]), "shade": torch.tensor([0, 2])})
SIDE_LOSS = (math.log(2) + math.log(4 / 3)) / 2
SHADE_LOSS = (math.log(2) + math.log(4)) / 2


def make(weights: dict[str, float] | None = None, l2: float = 0.0) -> Classifier:
    heads = (SIDE, SHADE)
    weighting = LossWeighting(heads, weights or {})
    return Classifier(_Given(ANSWERS), partial(torch.optim.SGD, lr=0.1), weighting=weighting, l2=l2)


def test_the_loss_is_the_weighted_sum_and_the_tally_keeps_the_parts() -> None:
    classifier = make({"shade": 3.0})
    loss, _ = classifier.model_step(BATCH, classifier.train_metrics)
    assert loss.item() == pytest.approx(SIDE_LOSS + 3 * SHADE_LOSS)
    means = {name: value.item() for name, value in classifier.train_metrics.compute().items()}
    assert means == pytest.approx(
        {
            "loss": SIDE_LOSS + 3 * SHADE_LOSS,
            "acc": 0.5,  # the second image has its side right and its shade wrong
            "side/loss": SIDE_LOSS,
            "shade/loss": SHADE_LOSS,
            "side/acc": 1.0,
            "shade/acc": 0.5,
        }
    )


def test_l2_on_the_last_kernels() -> None:
    classifier = make(l2=0.01)
    squares = 0.0
    for name in ("side", "shade"):
        weight = classifier.net.get_submodule(f"{name}.out").get_parameter("weight")
        nn.init.constant_(weight, 2.0)
        squares += 4.0 * weight.numel()
    assert squares == 4 * (2 * 1 + 2 * 3)
    assert classifier.model_step(BATCH, classifier.train_metrics)[0].item() == pytest.approx(
        SIDE_LOSS + SHADE_LOSS + 0.01 * squares
    )


def test_metrics_weigh_batches_by_their_images() -> None:
    metrics = StageMetrics((SIDE,), f1=True)
    for right, size in ((3, 3), (0, 1)):
        targets = torch.ones(size, dtype=torch.int64)
        predicted = torch.tensor([1] * right + [0] * (size - right))
        loss = torch.tensor(float(size))
        metrics.update(loss, loss[None], {"side": predicted}, {"side": targets})
    values = {name: value.item() for name, value in metrics.compute().items()}
    expected = {"loss": (3 * 3 + 1) / 4, "acc": 3 / 4, "side/loss": (3 * 3 + 1) / 4, "side/acc": 3 / 4}
    assert values == pytest.approx({**expected, "side/f1": 6 / 7})  # 3 of 4 found; "left" has no image


def test_losses_in_16_bits_are_summed_in_32() -> None:
    metrics = StageMetrics((SIDE,)).to(torch.bfloat16)
    predicted = {"side": torch.ones(3, dtype=torch.int64)}
    for _ in range(2):
        for loss in torch.full((1000,), 0.7):
            metrics.update(loss, loss[None], predicted, predicted)
        assert metrics.compute()["loss"].item() == pytest.approx(0.7, rel=1e-5)
        metrics.reset()


def _fit(seed: int, validates: bool) -> tuple[list[list[float]], list[float]]:
    """Fit for four epochs with a shuffling loader and a plateau that is always reached: the images of each epoch in
    their order, and its rate."""
    images = torch.arange(40.0).view(40, 1, 1, 1)
    loader = DataLoader([(image, {"side": torch.tensor(0)}) for image in images], 8, shuffle=True)  # type: ignore[arg-type]
    plateau = {
        "scheduler": partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=100), "monitor": "val/loss",
    }  # fmt: skip
    seen, rates = list[list[float]](), list[float]()

    class Recorder(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append([])
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_start(
            self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            seen[-1] += batch[0].flatten().tolist()

    L.seed_everything(seed, verbose=False)
    net = MultiHeadNet((1, 1, 1), (SIDE,), {"flatten": nn.Flatten()})
    classifier = Classifier(net, partial(torch.optim.SGD, lr=1e-6), lr_scheduler=plateau)
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Recorder()],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(classifier, loader, loader if validates else None)
    return seen, rates


@pytest.mark.parametrize("validates", [True, False])
def test_a_loader_and_a_plateau_of_ones_own(validates: bool) -> None:
    """The loader draws from the user's seed. Without validation the plateau looks at the training."""
    (first, rates), (second, _) = (_fit(seed, validates) for seed in (1, 2))
    assert rates == pytest.approx([1e-6, 5e-7, 2.5e-7, 1.25e-7])
    assert all(sorted(epoch) == list(range(40)) for epoch in first + second)
    assert len({tuple(epoch) for epoch in first + second}) == 8  # no order comes twice


def test_an_image_counts_where_every_head_is_right() -> None:
    metrics = StageMetrics((Head("side", ("left", "right")), Head("size", ("small", "large"))))
    truth = {"side": torch.tensor([0, 1, 1]), "size": torch.tensor([0, 1, 0])}
    metrics.update(torch.tensor(1.0), torch.ones(2), {**truth, "size": torch.tensor([0, 0, 0])}, truth)
    metrics.update(
        torch.tensor(1.0), torch.ones(2), *[{"side": torch.ones(1).long(), "size": torch.ones(1).long()}] * 2
    )
    assert metrics.compute()["acc"].item() == pytest.approx(3 / 4)


def test_confusion_and_macro_averages() -> None:
    said, truth = torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 2, 2])
    answers = Predictions({"kind": said}, {"kind": truth}, torch.ones(6))
    values = classification_scores((Head("kind", ("a", "b", "c")),), answers)["kind"]
    assert values["confusion"].tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert values["class_precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert values["class_recall"].tolist() == pytest.approx([2 / 3, 1, 1 / 2])
    assert values["f1"].item() == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)
    assert values["recall"].item() == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_a_class_without_test_images_is_not_counted_and_not_the_worst() -> None:
    """Truth a a b, answers a b b: recall 1/2 and 1; nobody asked about c, which is answered never, or once."""
    head, truth = Head("kind", ("a", "b", "c")), torch.tensor([0, 0, 1])
    for said, recall, precision, worst in (
        (torch.tensor([0, 1, 1]), 3 / 4, 3 / 4, 0.5), (torch.tensor([0, 0, 2]), 1 / 2, 1 / 2, 0.0),
        (torch.tensor([0, 0, 1]), 1.0, 1.0, 1.0),
    ):  # fmt: skip
        answers = Predictions({"kind": said}, {"kind": truth}, torch.ones(3))
        values = classification_scores((head,), answers)
        assert values["kind"]["recall"].item() == pytest.approx(recall)
        assert values["kind"]["precision"].item() == pytest.approx(precision)
        summary = summarize_test((head,), 1.0, answers, values)["heads"]["kind"]
        assert summary["absent_classes"] == ["c"]
        assert summary["worst_class"] != "c"
        assert summary["worst_recall"] == worst


def test_the_results_name_the_worst_class_and_the_truths_probability() -> None:
    collector = PredictionCollector((SIDE, SHADE))
    collector.update(torch.tensor([0, 1]), ANSWERS, BATCH[1])
    answers = collector.predictions()
    scores = classification_scores((SIDE, SHADE), answers)
    summary = summarize_test((SIDE, SHADE), 1.0, answers, scores)
    assert summary["joint_accuracy"] == 0.5
    assert summary["heads"]["shade"]["accuracy"] == 0.5
    assert summary["heads"]["side"]["accuracy"] == 1.0
    assert answers.predicted["shade"].tolist() == [0, 0]
    assert answers.true_probability.tolist() == pytest.approx([0.5 * 0.5, 0.75 * 0.25])
    assert summary["by_class"] == {
        "side": {
            "left": {"joint_accuracy": 1.0, "side": 1.0, "shade": 1.0},
            "right": {"joint_accuracy": 0.0, "side": 1.0, "shade": 0.0},
        },
        "shade": {  # no image is grey
            "dark": {"joint_accuracy": 1.0, "side": 1.0, "shade": 1.0},
            "light": {"joint_accuracy": 0.0, "side": 1.0, "shade": 0.0},
        },
    }


def test_predictions_of_several_processes_come_in_the_order_of_the_split() -> None:
    collector = PredictionCollector((SIDE, SHADE))
    for row in (1, 0):
        logits = {name: values[row : row + 1] for name, values in ANSWERS.items()}
        collector.update(torch.tensor([row]), logits, {name: t[row : row + 1] for name, t in BATCH[1].items()})
    found = collector.predictions()
    assert found.targets["shade"].tolist() == [0, 2]
    assert found.predicted["side"].tolist() == [0, 1]
    assert found.correct().tolist() == [[True, True], [True, False]]


def test_a_checkpoint_opens_as_lightning_documents(lines_run: Path) -> None:
    run = Run(lines_run)
    net = build_net(run.config, run.image_shape, run.heads)
    loaded = Classifier.load_from_checkpoint(run.checkpoint("best"), net=net)
    assert loaded.hparams == {"l2": 0.0, "train_heads": [], "seed": 0}
    assert loaded.seed == 0
    images = torch.rand(2, *run.image_shape)
    for name, logits in run.net(images).items():
        torch.testing.assert_close(loaded.eval()(images)[name], logits)
