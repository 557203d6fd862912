"""Stateless random numbers: a hash of what they are for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.uint64]


def hash_u64(*words: Keys | int) -> Keys:
    """Return independent uniform 64-bit numbers, one per row of `words` (splitmix64, Steele et al. 2014)."""
    state: Keys = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def to_uniform(keys: Keys) -> Tensor:
    """Return hashes as numbers uniform in [0, 1), float32 of the same shape."""
    return torch.from_numpy((keys >> 40).astype(np.float32) / 2**24)
