"""The hash that decides places and splits, against the reference numbers of its publication."""

from __future__ import annotations

import numpy as np

from cnnlab.data.hashing import hash_u64, to_uniform


def test_hash_is_splitmix64() -> None:
    """The first numbers of the reference implementation (Vigna, https://prng.di.unimi.it/splitmix64.c)."""
    known = {0: 0xE220A8397B1DCDAF, 1234567: 6457827717110365317}
    assert hash_u64(np.array(list(known), np.uint64)).tolist() == list(known.values())
    second = 3203168211198807973  # of the seed 1234567, whose state goes up by the golden ratio
    golden = 0x9E3779B97F4A7C15
    assert hash_u64(np.array([(1234567 + golden) % 2**64], np.uint64)).tolist() == [second]


def test_uniform_numbers_are_the_highest_24_bits() -> None:
    assert to_uniform(np.array([0, 2**63, 2**64 - 1], np.uint64)).tolist() == [0.0, 0.5, 1 - 2**-24]
