"""Training and testing a network with one or more heads: the loss, what is logged, the optimizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cnnlab.data.datamodule import Batch, stream_seed
from cnnlab.errors import Diverged, UserError, did_you_mean
from cnnlab.models.heads import Head
from cnnlab.models.metrics import EpochMeans, PredictionCollector, classification_scores
from cnnlab.models.networks import MultiHeadNet
from cnnlab.models.weighting import LossWeighting


class Classifier(L.LightningModule):
    """A network with its heads, trained on the weighted sum of the heads' losses. A test leaves `predictions` and
    `scores` (see `classification_scores`).

    `optimizer` takes the parameters. `lr_scheduler` is Lightning's configuration of one, {"scheduler": ...,
    "interval": "step" or "epoch", ...}, whose scheduler takes the optimizer, and `total_steps` where it names
    that; None, or a scheduler None: the rate stays. `augment` changes the images float32 (B, C, H, W) of a
    training batch. `l2` times the sum of squares of every head's last kernel is added to the loss (Keras's
    `kernel_regularizer`). With `train_heads` only these branches are trained; everything else is frozen and in
    evaluation mode.

    Logged after each epoch, `<stage>` being train, val or test: `<stage>/loss`, `<stage>/acc` (every head
    right), `<stage>/<head>/loss` and `<stage>/<head>/acc`; `train/<head>/weight`; `selection_score` (see
    `_selection_score`); in the test also `test/<head>/f1`, `precision` and `recall`. Every
    `log_every_n_steps` steps log `train/loss_step`.

    Whatever is random in a training step (augmentation, dropout) is a function of (seed, step), so a
    resumed run needs no random state.
    """

    def __init__(
        self,
        net: MultiHeadNet,
        heads: Sequence[Head],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        weighting: LossWeighting,
        lr_scheduler: Mapping[str, Any] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        l2: float = 0.0,
        train_heads: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.heads, self.weighting = net, tuple(heads), weighting
        self.augment = augment or nn.Identity()
        if not 0 <= l2 <= 1e30:
            raise UserError(f"l2={l2!s:.40} is not in 0..1e30")
        self.optimizer, self.lr_scheduler, self.l2, self.seed = optimizer, lr_scheduler or {}, float(l2), seed
        self.train_heads = tuple(train_heads)
        for name in train_heads:
            if name not in net.head_names:
                raise UserError(f"train_heads: there is no head '{name}'{did_you_mean(name, net.head_names)}")
        for name, part in net.named_children():
            if train_heads and name not in train_heads:
                part.requires_grad_(False).eval()  # Lightning leaves a part's mode as it is
        names = ["loss", "acc", *(f"{head.name}/{what}" for what in ("loss", "acc") for head in self.heads)]
        self.train_means, self.val_means = EpochMeans(names, persistent=True), EpochMeans(names)
        self.test_means = EpochMeans(names)
        self.collector = PredictionCollector(self.heads)
        self.validated = False  # in this epoch
        self._batches: int | None = None  # of an epoch, where the learning rate depends on the number of steps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.net(images)  # type: ignore[no-any-return]

    def epoch_means(self, stage: str) -> EpochMeans:
        """What is summed up in the "train", "val" or "test" stage."""
        return {"train": self.train_means, "val": self.val_means, "test": self.test_means}[stage]

    def step(self, batch: Batch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, a scalar, and {head: logits}; the unweighted numbers are summed up by stage."""
        images, targets = batch
        logits = self(images)
        losses = torch.stack([head.loss(logits[head.name], targets[head.name]) for head in self.heads])
        loss: Tensor = self.weighting(losses)
        if stage == "train" and not math.isfinite(losses.sum().item()):
            # The first that is not finite; the first of all where only their sum is not.
            place = int((~torch.isfinite(losses)).int().argmax())
            raise Diverged(
                f"step {self.global_step + 1}: the loss of head '{self.heads[place].name}' is {losses[place].item()}"
            )
        if self.l2:
            loss = loss + self.l2 * sum(kernel.square().sum() for kernel in self.net.head_weights())
        with torch.no_grad():
            right = [head.predict(logits[head.name]) == targets[head.name] for head in self.heads]
            stacked = torch.stack(right).float()  # (heads, B)
            joint = stacked.amin(dim=0).sum()
            sums = [loss[None] * len(images), joint[None], losses * len(images), stacked.sum(dim=1)]
            self.epoch_means(stage).update(torch.cat(sums), len(images))
        return loss, logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        seed = stream_seed(self.seed, step) + (self.global_rank << 40)
        if self.device.type == "cpu":  # the other devices' generators cost a millisecond a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        loss = self.step((self.augment(images), targets), "train")[0]
        if self.global_step % self._logging_interval() == 0:  # at each step it would cost 3 % of the time
            self.log("train/loss_step", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        logits = self.step(batch, "test")[1]
        # Of several processes each is served every world_size-th image.
        first = sum(len(part) for part in self.collector.rows)
        rows = torch.arange(first, first + len(images), device=self.device)
        self.collector.update(rows * self.trainer.world_size + self.global_rank, logits, targets)

    def on_train_epoch_start(self) -> None:
        self.train_means.reset()
        self.validated = False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated"] = self.validated  # a run may go on within an epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validated = checkpoint.get("validated", False)

    def on_validation_epoch_start(self) -> None:
        self.val_means.reset()

    def on_test_epoch_start(self) -> None:
        self.test_means.reset()
        self.collector.reset()

    def on_validation_epoch_end(self) -> None:
        self.validated = not self.trainer.sanity_checking
        self._log_all({"selection_score": _selection_score(self._log_means("val"))})

    def on_train_epoch_end(self) -> None:
        means = self._log_means("train")
        weights = self.weighting.by_head()
        self._log_all({f"train/{name}/weight": weight for name, weight in weights.items()})
        if not self._validates():
            self._log_all({"selection_score": -float(self.current_epoch)})  # without validation the last is the best
        losses = [means[f"{head.name}/loss"] for head in self.heads]
        self.weighting.on_epoch_end(torch.tensor(losses, device=self.device))
        self._step_epoch_scheduler()
        self._check_steps()

    def on_test_epoch_end(self) -> None:
        self._log_means("test")
        self.predictions = self.collector.predictions()
        self.scores = classification_scores(self.heads, self.predictions)
        for head in self.heads:
            own = self.scores[head.name]
            self._log_all({f"test/{head.name}/{name}": own[name] for name in ("f1", "precision", "recall")})

    def _log_means(self, stage: str) -> dict[str, float]:
        means: dict[str, float] = self.epoch_means(stage).compute()
        self._log_all({f"{stage}/{name}": value for name, value in means.items() if name != "images"})
        return means

    def _log_all(self, values: Mapping[str, float | Tensor]) -> None:
        """Log values that are the same in all processes."""
        tensors = {name: torch.as_tensor(value, device=self.device).float() for name, value in values.items()}
        self.log_dict(tensors, sync_dist=self.trainer.world_size > 1)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained: of the network, and of the weighting where it learns."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained_parameters())
        if self.lr_scheduler.get("scheduler") is None:
            return optimizer
        config = self.scheduler_config(optimizer, self._total_steps() if self._counts_steps() else 1)
        config["reduce_on_plateau"] = False  # it is stepped here, not by Lightning: see `_step_epoch_scheduler`
        if not self._validates() and "monitor" in config:
            config["monitor"] = config["monitor"].replace("val/", "train/")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # In mixed precision Lightning refuses to clip for a fused optimizer, which may unscale the gradients first;
        # bfloat16 does not scale them.
        if gradient_clip_val and str(self.trainer.precision) == "bf16-mixed" and optimizer.defaults.get("fused"):
            by_value = gradient_clip_algorithm == "value"
            clip: Any = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.trained_parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def scheduler_config(self, optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
        """Lightning's configuration of the learning rate's scheduler, built for a run of `total_steps`."""
        make, config = self.lr_scheduler["scheduler"], {**self.lr_scheduler}
        config["scheduler"] = make(optimizer, total_steps=total_steps) if self._counts_steps() else make(optimizer)
        return config

    def _counts_steps(self) -> bool:
        """Whether the learning rate's scheduler asks for `total_steps`."""
        return "total_steps" in inspect.signature(self.lr_scheduler["scheduler"]).parameters

    def _validates(self) -> bool:
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        split = getattr(datamodule, "has_validation", True)
        return bool(split and self.trainer.limit_val_batches)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self._scheduler_interval() == "step":
            super().lr_scheduler_step(scheduler, metric)

    def _step_epoch_scheduler(self) -> None:
        """Schedulers by epoch step here, before the epoch's checkpoint is written, and not after it as in
        Lightning, where a run that is resumed from it would miss the step."""
        scheduler: Any = self.lr_schedulers()
        if scheduler is None or self._scheduler_interval() == "step":
            return
        config = self.trainer.lr_scheduler_configs[0]
        if (self.current_epoch + 1) % config.frequency:
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor, logged = str(config.monitor), self.trainer.callback_metrics
            if not self.validated and not monitor.startswith("train/") and self._validates():
                return  # its value is that of an epoch before
            if monitor in logged:
                scheduler.step(float(logged[monitor]))
            elif not (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1):
                hint = did_you_mean(monitor, [str(name) for name in logged])
                raise UserError(f"lr_scheduler.monitor={monitor} is not logged{hint}")
        else:
            scheduler.step()

    def _logging_interval(self) -> int:
        return max(1, int(getattr(self.trainer, "log_every_n_steps", 50)))

    def _scheduler_interval(self) -> str:
        return str(self.lr_scheduler.get("interval", "epoch"))

    def _total_steps(self) -> int:
        """The optimizer's steps in the whole run. Not Lightning's own estimate: it would begin to serve data before a
        resumed run knows from where. Raises `UserError` where only the time is limited."""
        trainer: Any = self.trainer
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            steps = trainer.estimated_stepping_batches
        else:
            batches, limit = len(datamodule.train_dataloader()), trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            if trainer.overfit_batches:
                few = trainer.overfit_batches
                batches = min(batches, few) if isinstance(few, int) else int(batches * few)
            self._batches = batches
            epochs = trainer.max_epochs
            steps = math.inf if epochs is None or epochs < 0 else self._planned_steps(epochs)
            steps = min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
        if not math.isfinite(steps):
            raise UserError(
                "lr_scheduler: this learning rate depends on the number of steps, which trainer.max_time alone leaves "
                "open; set trainer.max_epochs or trainer.max_steps, too, or choose lr_scheduler=constant"
            )
        return max(1, int(steps))

    def _planned_steps(self, epochs: int) -> int:
        """The optimizer's steps in the first `epochs` epochs."""
        trainer, batches = self.trainer, self._batches or 0
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                parts = [callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
                return sum(math.ceil(batches / part) for part in parts)
        return epochs * math.ceil(batches / trainer.accumulate_grad_batches)

    def _check_steps(self) -> None:
        """Raise `UserError` after an epoch whose steps are not those that the learning rate was planned for."""
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


def _selection_score(means: Mapping[str, float]) -> float:
    """What chooses the best epoch, the lower the better: the number of validation images with a head wrong,
    and below one image the loss, to decide between equals."""
    wrong = round((1 - means["acc"]) * means["images"])
    return wrong + 0.5 + math.atan(means["loss"]) / math.pi
