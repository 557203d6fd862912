"""Where the time of a training step goes, and how far it and a step of gradient ascent are from what the machine could
do."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.interpret.feature_visualization import AscentConfig, visualize_channels
from cnnlab.interpret.network import layer_named
from cnnlab.training.build import build_datamodule, build_net
from cnnlab.utils import hardware
from research.performance.explaining import CHANNELS, LAYER, STEPS
from research.performance.ours import configuration, job
from research.performance.side_by_side import Result, command
from research.performance.training import BATCHES, precisions, settings

PASSES = 5  # over an activation: written, read by the next layer, read again and its gradient written and read
SHOWN = 10  # operators


def _median_seconds(work: Callable[[], Any], rounds: int) -> float:
    took = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return median(took[3:])


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a product of two 2048 x 2048 matrices."""
    a, b = torch.rand(2048, 2048).to(dtype), torch.rand(2048, 2048).to(dtype)
    return 2 * 2048**3 / _median_seconds(lambda: a @ b, 15)


def memory_rate() -> float:
    """Bytes a second, read and written, of copying 256 MB."""
    source = torch.rand(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_seconds(lambda: target.copy_(source), 9)


def activation_bytes(net: nn.Module, images: Tensor) -> int:
    """Bytes of the outputs of all layers in a forward pass; a view of its input costs nothing."""
    sizes: list[int] = []

    def count(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.data_ptr() != inputs[0].data_ptr():
            sizes.append(output.numel() * output.element_size())

    handles = [layer.register_forward_hook(count) for layer in net.modules() if not list(layer.children())]
    net(images)
    for handle in handles:
        handle.remove()
    return sum(sizes)


def _operators(step: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Return {operator: median seconds in a step}, with one profile per step."""
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        for event in profiler.key_averages():
            took[event.key].append(event.self_cpu_time_total / 1e6)
        del profiler
        gc.collect()
    return {name: median(values) for name, values in took.items()}


def _network(name: str, precision: str, rounds: int) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return the shares of the operators in a step, and the step relative to the machine's limits."""
    with job(configuration(*settings(name, 3), f"trainer.precision={precision}")) as run:
        classifier, batch = run.classifier.train(), next(iter(run.data.train_dataloader()))
        optimizer = torch.optim.Adam(classifier.net.parameters(), fused=True)
        mixed = hardware.precision(precision) == "bf16-mixed"

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss, _ = classifier.model_step(batch, classifier.train_metrics)
            loss.backward()
            optimizer.step()

        seconds = _median_seconds(step, rounds)
        with FlopCounterMode(display=False) as counter:
            step()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            moved = PASSES * activation_bytes(classifier.net, batch[0])
        operators = _operators(step, rounds)
    words = f"{name}, {'bfloat16' if mixed else 'float32'}"
    dtype = torch.bfloat16 if mixed else torch.float32
    limit = _limit(words, BATCHES[name], seconds, counter.get_total_flops(), moved, dtype)
    largest = sorted(operators.items(), key=lambda item: -item[1])[:SHOWN]
    whole = sum(operators.values())
    return [{"step": words, "operator": key, "share": f"{took / whole:.1%}"} for key, took in largest], limit


def _limit(
    words: str, images: int, seconds: float, operations: float, moved: float, dtype: torch.dtype
) -> dict[str, str]:
    """A step of so many seconds, operations and bytes relative to the machine's limits, measured now."""
    rate, memory = matrix_rate(dtype), memory_rate()
    return {
        "step": words,
        "images": str(images),
        "ms": f"{1e3 * seconds:.1f}",
        "G operations": f"{operations / 1e9:.1f}",
        "of the matrix rate": f"{operations / seconds / rate:.0%} of {rate / 1e12:.2f} T/s",
        "GB moved at least": f"{moved / 1e9:.2f}",
        "of the memory rate": f"{moved / seconds / memory:.0%} of {memory / 1e9:.0f} GB/s",
    }


def _filters(rounds: int) -> dict[str, str]:
    """A step of gradient ascent on all filters of a layer at once, relative to the machine's limits."""
    cfg = configuration("experiment=multihead_report_b")
    data = build_datamodule(cfg)
    net = build_net(cfg, data.image_shape, data.heads).eval()
    channels = torch.arange(CHANNELS)

    def climb(steps: int) -> None:
        ascent = AscentConfig(steps=steps, bounded=False, fourier=False, tv=0, jitter=0)
        visualize_channels(net, LAYER, channels, data.image_shape, ascent)

    operations = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            climb(steps)
        operations.append(counter.get_total_flops())
    on_the_way = nn.Sequential(net.stem, layer_named(net, LAYER))
    moved = PASSES * activation_bytes(on_the_way, torch.zeros(CHANNELS, *data.image_shape))
    seconds = _median_seconds(lambda: climb(STEPS), rounds) / STEPS
    return _limit(
        f"{CHANNELS} filters of {LAYER}", CHANNELS, seconds, operations[1] - operations[0], moved, torch.float32
    )


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    rounds = given or (21 if full else 5)
    limits = []
    for name in BATCHES:
        for precision in precisions().values():
            shares, limit = _network(name, precision, rounds)
            limits.append(limit)
            print(f"{limit['step']}: " + ", ".join(f"{row['operator']} {row['share']}" for row in shares))
    return [], [*limits, _filters(min(rounds, 5))]


if __name__ == "__main__":
    command("limits", measure, __doc__)
