"""What the machine can do, and the few settings that make a convolution fast on it."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cnnlab.errors import UserError

# glibc's mallopt parameters, from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def _cpu_info(what: str) -> str:
    """What Linux says of the first processor, "" where it says nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")


# Whether oneDNN is to multiply the matrices of float32, which PyTorch leaves to MKL where it has it: on processors of
# AMD's, where MKL is slow (docs/performance.md). Windows says "..., AuthenticAMD" of them.
MULTIPLY_BY_ONEDNN = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and "AuthenticAMD" in (_cpu_info("vendor_id") or platform.processor())
)


def precision(setting: str) -> str:
    """Lightning's precision for `setting`; "auto" is bfloat16 mixed where the hardware multiplies it
    natively (a CPU with AVX-512 BF16 or AMX, a GPU from Ampere on), else float32."""
    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def threads_of_job(threads: int | None, launcher: Mapping[str, Any]) -> int | None:
    """Return how many threads a job uses: `threads`, or its share of the cores where several jobs run at once, or None
    for all. `launcher` is Hydra's, which says how many jobs (joblib) or how many cores each has (submitit)."""
    cores = launcher.get("cpus_per_task") or os.cpu_count() or 1
    jobs = launcher.get("n_jobs", 1)
    jobs = cores if jobs < 1 else jobs  # joblib's -1: as many as there are cores
    share = max(1, cores // jobs) if jobs > 1 or launcher.get("cpus_per_task") else None
    return share if threads is None else threads


@contextmanager
def limit_threads(threads: int | None) -> Iterator[None]:
    """Within, this process uses `threads` threads (None: all); the next job in this process begins with all again.
    `UserError` where `threads` is not in 1..1024."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise UserError(f"threads={threads} is not a whole number in 1..1024")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def disable_malloc_trim() -> None:
    """Let glibc keep freed memory for the next step instead of giving it back to the kernel.

    Activations of tens of megabytes otherwise come back as page faults at every step, which costs a
    large first convolution half of its speed. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def description() -> str:
    """The device a run is trained on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = _cpu_info("model name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"
