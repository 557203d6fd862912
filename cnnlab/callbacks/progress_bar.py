"""Lightning's rich progress bar, with epochs counted from 1."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Show "Epoch 1/5" where Lightning's own bar has "Epoch 0/4" and the log has "epoch 1/5"."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        of = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        return f"{f'Epoch {current_epoch + 1}{of}':{len(self.validation_description)}}"
