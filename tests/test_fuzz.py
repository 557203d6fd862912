"""A look at what `python -m tests.fuzz 500` tries at length."""

from __future__ import annotations

import pytest

from tests import fuzz

pytestmark = pytest.mark.slow


def test_a_value_works_or_is_refused() -> None:
    counts = fuzz.run(24)
    assert sum(counts.values()) == 24
    assert min(counts.values()) >= 1, "of both kinds there should be some"
