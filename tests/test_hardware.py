"""The precision that the hardware multiplies."""

from __future__ import annotations

import pytest
import torch

from cnnlab.utils import hardware


@pytest.mark.parametrize(("native", "meant"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_auto_is_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, native: bool, meant: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert hardware.precision("auto") == meant
    assert hardware.precision("64-true") == "64-true"
