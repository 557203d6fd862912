"""Precision, threads and memory settings for this machine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cnnlab.utils.errors import UserError

# glibc's mallopt parameters, from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def precision(setting: str, accelerator: str = "auto") -> str:
    """Return Lightning's precision. "auto" is bfloat16 mixed if the accelerator multiplies it natively (a CPU with
    AVX-512 BF16 or AMX, a GPU from Ampere on), else float32."""
    if setting != "auto":
        return setting
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def threads_of_job(threads: int | None, launcher: Mapping[str, Any]) -> int | None:
    """Return the number of threads of a job: `threads`, its share of the cores where several jobs run at once, or None
    for all. `launcher` is Hydra's, with the number of jobs (joblib) or the cores of each (submitit)."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = launcher.get("cpus_per_task") or ours
    jobs = launcher.get("n_jobs", 1)
    jobs = cores if jobs < 1 else jobs  # joblib's -1: one per core
    share = max(1, cores // jobs) if jobs > 1 or launcher.get("cpus_per_task") else None
    return share if threads is None else threads


@contextmanager
def limit_threads(threads: int | None) -> Iterator[None]:
    """Use `threads` threads (None: all) in this process, and the former number afterwards. Raises `UserError` outside
    1..1024."""
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
    """Let glibc keep freed memory for the next step. Otherwise large activations come back as page faults at every
    step, which costs a large first convolution half of its speed. Does nothing for other C libraries."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def description(device: torch.device | None = None) -> str:
    """Return a device (None: the CPU) in words."""
    device = device or torch.device("cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    threads = torch.get_num_threads()
    return f"{name or platform.processor() or platform.machine()}, {threads} thread{'' if threads == 1 else 's'}"
