"""What is asked of the machine, and how often."""

from __future__ import annotations

import os

import pytest
import torch

from cnnlab import hardware

ASKED = "PYTORCH_NVML_BASED_CUDA_CHECK"  # Lightning sets it; see `spare_gpu_search`


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_that_is_not_there_is_not_searched_at_every_step(
    monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setenv(ASKED, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    hardware.spare_gpu_search()
    assert (ASKED in os.environ) == gpu


@pytest.mark.parametrize(("native", "meant"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_auto_is_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, native: bool, meant: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert hardware.precision("auto") == meant
    assert hardware.precision("64-true") == "64-true"
