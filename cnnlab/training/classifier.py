"""The LightningModule: a network with one or more heads, its losses, metrics, optimizer and learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cnnlab.data.datamodule import Batch, stream_seed
from cnnlab.models.networks import MultiHeadNet
from cnnlab.training.loss_weighting import LossWeighting
from cnnlab.training.metrics import PredictionCollector, StageMetrics, classification_scores
from cnnlab.utils.errors import Diverged, UserError, did_you_mean


class Classifier(L.LightningModule):
    """Train a network on the weighted sum of its heads' losses. A test leaves `predictions` and `scores`.

    Args:
        net: The network; `net.heads` are its heads.
        optimizer: Takes the parameters.
        lr_scheduler: Lightning's configuration of one, {"scheduler": ..., "interval": "step" or "epoch", ...}. The
            scheduler takes the optimizer, and `total_steps` if it names that. None: a constant rate.
        weighting: Combines the heads' losses; None: their sum.
        augment: Changes the images float32 (B, C, H, W) of a training batch.
        l2: Weight of the sum of squares of every head's last kernel in the loss (Keras's `kernel_regularizer`).
        train_heads: Heads to train; all else is frozen and in evaluation mode. Empty: everything is trained.
        seed: Seed of augmentation and dropout, which are a function of (seed, step), so that a resumed run needs no
            random state.

    Logged after each epoch, with `<stage>` one of train, val, test: `<stage>/loss`, `<stage>/acc` (every head right),
    `<stage>/<head>/loss`, `<stage>/<head>/acc`, `train/<head>/weight`, `train/images`, `val/<head>/f1`; after the test
    `test/<head>/f1`, `precision` and `recall`. Every `log_every_n_steps` steps: `train/loss_step`.
    """

    def __init__(
        self,
        net: MultiHeadNet,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
        lr_scheduler: Mapping[str, Any] | None = None,
        weighting: LossWeighting | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        l2: float = 0.0,
        train_heads: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("l2", "train_heads", "seed", logger=False)  # plain values: checkpoints hold no code
        self.net, self.heads = net, net.heads
        self.weighting = weighting or LossWeighting(self.heads)
        self.augment = augment or nn.Identity()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler or {}
        if not 0 <= l2 <= 1e30:
            raise UserError(f"l2={l2!s:.40} is not in 0..1e30")
        self.l2, self.seed, self.train_heads = float(l2), seed, tuple(train_heads)
        for name in train_heads:
            if name not in net.head_names:
                raise UserError(f"train_heads: there is no head '{name}'{did_you_mean(name, net.head_names)}")
        for name, part in net.named_children():
            if train_heads and name not in train_heads:
                part.requires_grad_(False).eval()  # Lightning keeps the mode
        self.train_metrics = StageMetrics(self.heads, persistent=True)  # a checkpoint may be written within an epoch
        self.val_metrics, self.test_metrics = StageMetrics(self.heads, f1=True), StageMetrics(self.heads)
        self.collector = PredictionCollector(self.heads)
        self.validated = False  # in this epoch
        self._train_means: dict[str, Tensor] = {}  # of this epoch, once it ends
        self._batches: int | None = None  # per epoch, where the learning rate depends on the number of steps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)  # type: ignore[no-any-return]

    def model_step(self, batch: Batch, metrics: StageMetrics) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a scalar, and {head: logits}, and update the metrics of the stage."""
        images, targets = batch
        logits = self(images)
        losses = torch.stack([head.loss(logits[head.name], targets[head.name]) for head in self.heads])
        loss: Tensor = self.weighting(losses)
        if self.training and not math.isfinite(losses.sum().item()):
            place = int((~torch.isfinite(losses)).int().argmax())
            raise Diverged(
                f"step {self.global_step + 1}: the loss of head '{self.heads[place].name}' is {losses[place].item()}"
            )
        if self.l2:
            loss = loss + self.l2 * sum(kernel.square().sum() for kernel in self.net.head_weights())
        with torch.no_grad():
            predicted = {head.name: head.predict(logits[head.name]) for head in self.heads}
            metrics.update(loss, losses, predicted, targets)
        return loss, logits

    def on_train_start(self) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):  # which waits for an epoch that begins
                self.trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        seed = stream_seed(self.seed, step) + (self.global_rank << 40)
        self._random_state = torch.get_rng_state()  # which a loader may draw from
        if self.device.type == "cpu":  # the other devices' generators cost a millisecond a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        loss = self.model_step((self.augment(images), targets), self.train_metrics)[0]
        interval = max(1, int(getattr(self.trainer, "log_every_n_steps", 50)))
        if self.global_step % interval == 0:  # at each step it would cost 3 % of the time
            self.log("train/loss_step", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        torch.set_rng_state(self._random_state)
        if self.trainer.is_last_batch:  # callbacks see the epoch's values in their own `on_train_epoch_end`
            self._train_means = self._log_metrics("train", self.train_metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.model_step(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        with torch.autocast(self.device.type, enabled=False):  # in float32, as the network is used afterwards
            logits = self.model_step(batch, self.test_metrics)[1]
        first = sum(len(part) for part in self.collector.rows)
        rows = torch.arange(first, first + len(images), device=self.device)  # each process gets every n-th image
        self.collector.update(rows * self.trainer.world_size + self.global_rank, logits, targets)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return {head: logits (B, units)}."""
        return self(batch[0])  # type: ignore[no-any-return]

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()
        self._train_means = {}
        self.validated = False

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self.collector.reset()

    def on_validation_epoch_end(self) -> None:
        self.validated = not self.trainer.sanity_checking
        self._log_metrics("val", self.val_metrics)

    def on_train_epoch_end(self) -> None:
        means = self._train_means or self._log_metrics("train", self.train_metrics)  # as after `max_steps`
        self._log_all({f"train/{name}/weight": weight for name, weight in self.weighting.by_head().items()})
        self._log_all({"train/images": self.train_metrics.exact_match.total * self.trainer.world_size})
        self.weighting.on_epoch_end(torch.stack([means[f"{head.name}/loss"] for head in self.heads]))
        self._step_plateau()
        self._check_steps()

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics)
        self.predictions = self.collector.predictions()
        self.scores = classification_scores(self.heads, self.predictions)
        for head in self.heads:
            scores = self.scores[head.name]
            self._log_all({f"test/{head.name}/{name}": scores[name] for name in ("f1", "precision", "recall")})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated"] = self.validated
        logged = self.trainer.callback_metrics.items()
        checkpoint["val_metrics"] = {name: value.item() for name, value in logged if name.startswith("val/")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validated = checkpoint.get("validated", False)

    def _log_metrics(self, stage: str, metrics: StageMetrics) -> dict[str, Tensor]:
        values = metrics.compute()
        self._log_all({f"{stage}/{name}": value for name, value in values.items()})
        return values

    def _log_all(self, values: Mapping[str, float | Tensor]) -> None:
        """Log values that are the same in all processes."""
        tensors = {name: torch.as_tensor(value, device=self.device).float() for name, value in values.items()}
        self.log_dict(tensors, on_step=False, on_epoch=True, batch_size=1, sync_dist=self.trainer.world_size > 1)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained, including a learned weighting's."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer: Any = self.optimizer(self.trained_parameters())
        if str(self.trainer.precision) == "bf16-mixed":  # gradients are not scaled: Lightning may clip them
            optimizer._step_supports_amp_scaling = False
        if self.lr_scheduler.get("scheduler") is None:
            return optimizer
        config = self.scheduler_config(optimizer, self._total_steps() if self._counts_steps() else 1)
        if isinstance(config["scheduler"], ReduceLROnPlateau) and config.get("interval") == "step":
            raise UserError("lr_scheduler.interval=step: ReduceLROnPlateau compares epochs; set interval=epoch")
        config["reduce_on_plateau"] = False  # see `_step_plateau`
        if not self.validates() and "monitor" in config:
            config["monitor"] = config["monitor"].replace("val/", "train/")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def scheduler_config(self, optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
        """Return Lightning's configuration of the scheduler, built for a run of `total_steps`."""
        make, config = self.lr_scheduler["scheduler"], {**self.lr_scheduler}
        config["scheduler"] = make(optimizer, total_steps=total_steps) if self._counts_steps() else make(optimizer)
        return config

    def validates(self) -> bool:
        """Return whether the run validates at all."""
        split = getattr(getattr(self.trainer, "datamodule", None), "has_validation", True)
        return bool(split and self.trainer.enable_validation)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _step_plateau(self) -> None:
        """Step `ReduceLROnPlateau` before the epoch's checkpoint is written. Lightning would step it afterwards, and a
        run that is resumed from the checkpoint would miss the step."""
        scheduler: Any = self.lr_schedulers()
        config = self.trainer.lr_scheduler_configs[0] if scheduler is not None else None
        if config is None or not isinstance(scheduler, ReduceLROnPlateau):
            return
        if (self.current_epoch + 1) % config.frequency:
            return
        monitor, logged = str(config.monitor), self.trainer.callback_metrics
        if not self.validated and not monitor.startswith("train/") and self.validates():
            return  # its value is an earlier epoch's
        if monitor in logged:
            scheduler.step(float(logged[monitor]))
        elif not (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1):
            hint = did_you_mean(monitor, [str(name) for name in logged])
            raise UserError(f"lr_scheduler.monitor={monitor} is not logged{hint}")

    def _counts_steps(self) -> bool:
        return "total_steps" in inspect.signature(self.lr_scheduler["scheduler"]).parameters

    def _total_steps(self) -> int:
        """Return the optimizer's steps in the whole run. Lightning's `estimated_stepping_batches` would begin to serve
        data before a resumed run knows from where. Raises `UserError` where only the time is limited."""
        trainer: Any = self.trainer
        if getattr(trainer, "datamodule", None) is None:
            return max(1, int(trainer.estimated_stepping_batches))
        if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):
            raise UserError(
                "lr_scheduler: StochasticWeightAveraging changes the number of epochs, on which this learning rate "
                "depends; choose lr_scheduler=constant, or average with callbacks=[default,ema]"
            )
        batches = len(trainer.datamodule.train_dataloader())
        for limit in (trainer.limit_train_batches, trainer.overfit_batches or 1.0):
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        self._batches, epochs = batches, trainer.max_epochs
        steps = math.inf if epochs is None or epochs < 0 else self._planned_steps(epochs)
        steps = min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
        if not math.isfinite(steps):
            raise UserError(
                "lr_scheduler: this learning rate depends on the number of steps, which trainer.max_time alone leaves "
                "open; set trainer.max_epochs or trainer.max_steps, too, or choose lr_scheduler=constant"
            )
        return max(1, int(steps))

    def _planned_steps(self, epochs: int) -> int:
        """Return the optimizer's steps in the first `epochs` epochs."""
        trainer, batches = self.trainer, self._batches or 0
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                parts = [callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
                return sum(math.ceil(batches / part) for part in parts)
        return epochs * math.ceil(batches / trainer.accumulate_grad_batches)

    def _check_steps(self) -> None:
        """Raise `UserError` after an epoch that did not have the steps for which the learning rate was planned."""
        trainer = self.trainer
        if self._batches is None or trainer.should_stop:
            return
        planned = self._planned_steps(self.current_epoch + 1)
        planned = min(planned, trainer.max_steps) if trainer.max_steps >= 0 else planned
        if self.global_step != planned:
            raise UserError(
                f"lr_scheduler: epoch {self.current_epoch + 1} ends at step {self.global_step}, planned was {planned}: "
                "the batch size or the accumulation of gradients changed during the run; choose lr_scheduler=constant, "
                "plateau or every_epoch, which need no number of steps"
            )
