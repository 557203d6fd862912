"""The metrics beside those of Quantus (Hedström et al. 2023), which brings another OpenCV: `make test-quantus`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnlab.interpret.metrics import METRICS

quantus = pytest.importorskip("quantus", reason="make test-quantus installs it")

THEIRS = {"mass": "RelevanceMassAccuracy", "rank": "RelevanceRankAccuracy", "pointing": "PointingGame", "auc": "AUC"}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("true", [0.01, 0.07, 0.5])
def test_a_metric_is_that_of_quantus(name: str, true: float) -> None:
    """On maps without equal or negative values, as the two treat those differently by intent."""
    random = np.random.default_rng(0)
    maps = random.permuted(np.arange(1, 12 * 784 + 1, dtype=np.float32).reshape(12, 1, 28, 28), axis=None)
    masks = random.random((12, 1, 28, 28)) < true
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    metric = getattr(quantus, THEIRS[name])(abs=False, normalise=False, disable_warnings=True)
    theirs = metric(model=net, x_batch=maps, y_batch=np.zeros(12, int), a_batch=maps, s_batch=masks, device="cpu")
    ours = METRICS[name](torch.from_numpy(maps[:, 0]), torch.from_numpy(masks[:, 0]))
    assert ours.numpy() == pytest.approx(np.array(theirs, dtype=np.float64), rel=1e-5)
