"""A callback that checks heatmaps after each epoch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch

from cnnlab.data.datamodule import ImageDataModule, sample_indices
from cnnlab.interpret.attribution import attribute
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.metrics import bootstrap_ci, rank_accuracy
from cnnlab.utils.errors import UserError


class GradCamMonitor(L.Callback):
    """Log Grad-CAM's rank accuracy after each epoch, `val/<head>/grad_cam_rank_accuracy`, on `images` validation images
    (`train/...` without validation). Raises `UserError` for a data set without known right pixels."""

    def __init__(self, images: int = 100) -> None:
        self.images = images

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, ImageDataModule):
            raise UserError("callbacks.grad_cam_monitor needs a data module of cnnlab, which knows true pixels")
        self.stage = "val" if datamodule.has_validation else "train"
        split = datamodule.splits[self.stage]
        rows = sample_indices(len(split), self.images)
        self.inputs = split.inputs(rows)
        self.truths = {head: split.truths(rows, head).get("counterfactual") for head in datamodule.heads}
        if any(mask is None for mask in self.truths.values()):
            raise UserError(
                "callbacks.grad_cam_monitor: this data set has no true pixels to grade a heatmap by, lines have"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net: Any = pl_module.net
        images = self.inputs.to(pl_module.device)
        for head, mask in self.truths.items():
            assert mask is not None
            maps = attribute(net, images, "predicted", grad_cam, head.name).maps
            rank = bootstrap_ci(rank_accuracy(maps, mask))[0]
            pl_module.log(
                f"{self.stage}/{head.name}/grad_cam_rank_accuracy",
                torch.tensor(rank, device=pl_module.device),
                sync_dist=trainer.world_size > 1,
            )
