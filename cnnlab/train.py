"""python -m cnnlab.train: train a network, test it once, and write a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnlab.cli import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: DictConfig) -> float:
    """Train and test what `cfg` says; returns the best joint accuracy on the validation split."""
    from cnnlab.training import train_run  # torch comes with it: a typo is answered before

    return train_run(cfg)


if __name__ == "__main__":
    command("train", train)
