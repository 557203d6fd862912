"""What is asked of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cnnlab import hardware


@pytest.mark.parametrize(("native", "meant"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_auto_is_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, native: bool, meant: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert hardware.precision("auto") == meant
    assert hardware.precision("64-true") == "64-true"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux says there who made the processor")
def test_onednn_multiplies_on_amd_processors_alone() -> None:
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    assert (both and amd) == hardware.MULTIPLY_BY_ONEDNN
