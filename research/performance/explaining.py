"""Explaining: filters all at once beside one after another, in Keras and here; Grad-CAM beside grad-cam, torch-cam and
Captum as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from research.performance.side_by_side import Library, Result, Rounds, best, command, compared, in_turns

LAYER, CHANNELS, STEPS = "angle.conv1", 64, 80  # the layer in Report B
PACKAGES = ("grad-cam", "torch-cam", "Captum")
BATCH = 250  # images of Grad-CAM at once; ours is given all, and splits them so itself


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def torch_rounds(channels: int, count: int) -> Rounds:
    import torch
    from captum.attr import LayerAttribution, LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torch import Tensor
    from torchcam.methods import GradCAM as TorchCam

    from cnnlab.interpret.attribution import attribute
    from cnnlab.interpret.feature_visualization import AscentConfig, visualize_channels
    from cnnlab.interpret.methods.cams import grad_cam
    from cnnlab.interpret.network import HeadWrapper, default_target_layer, layer_named
    from cnnlab.models.heads import Head
    from cnnlab.training.build import build_datamodule, build_net
    from cnnlab.utils import hardware
    from research.performance.ours import configuration

    torch.manual_seed(0)
    hardware.disable_malloc_trim()
    cfg = configuration("experiment=multihead_report_b")
    data = build_datamodule(cfg)
    net = build_net(cfg, data.image_shape, data.heads).eval()
    images, targets = data.splits["test"].batch(torch.arange(count))

    plain = AscentConfig(steps=STEPS, bounded=False, fourier=False, jitter=0)  # the reports' rule
    every_channel = torch.arange(channels)

    def one_by_one() -> None:
        for channel in every_channel:
            visualize_channels(net, LAYER, channel[None], data.image_shape, plain)

    def ours(head: Head, rows: Tensor) -> Any:
        return attribute(net, images[rows], targets[head.name][rows], grad_cam, head.name)

    layers = {
        head.name: layer_named(net, default_target_layer(HeadWrapper(net, head.name), images)) for head in data.heads
    }

    def theirs(head: Head, rows: Tensor, kind: type[GradCAM] = GradCAM) -> Any:
        wanted = [ClassifierOutputTarget(target) for target in targets[head.name][rows].tolist()]
        with kind(model=HeadWrapper(net, head.name), target_layers=[layers[head.name]]) as cam:
            return cam(input_tensor=images[rows], targets=wanted)

    def by_torch_cam(head: Head, rows: Tensor) -> Any:
        wrapper = HeadWrapper(net, head.name)
        with TorchCam(wrapper, target_layer=layers[head.name]) as cam:
            return cam(targets[head.name][rows].tolist(), wrapper(images[rows]))

    def by_captum(head: Head, rows: Tensor) -> Any:
        cam = LayerGradCam(HeadWrapper(net, head.name), layers[head.name])
        maps = cam.attribute(images[rows], targets[head.name][rows], relu_attributions=True)
        return LayerAttribution.interpolate(maps, images.shape[2:], "bilinear")

    def every(method: Callable[[Head, Tensor], Any], at_once: int = BATCH) -> Callable[[], float]:
        batches = torch.arange(count).split(at_once)
        return lambda: _seconds(lambda: [method(head, rows) for head in data.heads for rows in batches])

    class AsItIs(GradCAM):  # type: ignore[misc]
        """The package's map in the layer's own resolution: it enlarges it in another way than we do."""

        def get_target_width_height(self, input_tensor: Tensor) -> Any:
            return None

    for head in data.heads:
        placed = ours(head, torch.arange(BATCH)).layer_map
        assert placed is not None
        same = placed.values
        for _ in range(2):  # scaled to [0, 1] as the package does, a layer's map and then all layers' mean
            same = same - same.amin(dim=(1, 2), keepdim=True)
            same = same / (1e-7 + same.amax(dim=(1, 2), keepdim=True))
        difference = (same - torch.from_numpy(theirs(head, torch.arange(BATCH), AsItIs))).abs().max()
        assert difference < 1e-4, f"{head.name}: maps differ by {difference:.1e}"

    return {
        "at once": lambda: _seconds(lambda: visualize_channels(net, LAYER, every_channel, data.image_shape, plain)),
        "one by one": lambda: _seconds(one_by_one),
        "cnnlab": every(ours, count),
        "grad-cam": every(theirs),
        "torch-cam": every(by_torch_cam),
        "Captum": every(by_captum),
    }


def keras_rounds(channels: int) -> Rounds:
    from research.performance import peers

    work = peers.filters_one_by_one(peers.branched(), channels, STEPS)
    return {"Keras, one by one": lambda: _seconds(work)}


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    count, rounds = (1000, 9) if full else (500, 1)
    libraries = [Library(torch_rounds, CHANNELS, count), Library(keras_rounds, CHANNELS)]
    seconds = in_turns(libraries, given or rounds)
    filters, maps = f"{CHANNELS} filters of {LAYER}, {STEPS} steps", f"Grad-CAM, {count} images x 4 heads"
    results = [
        compared(seconds, filters, "at once", "Keras, one by one", 8),
        compared(seconds, filters, "at once", "one by one", 8),
        compared(seconds, maps, "cnnlab", best(seconds, PACKAGES), 2),
    ]
    figures = [
        {
            "work": maps if who in ("cnnlab", *PACKAGES) else filters,
            "contestant": who,
            "seconds (median)": f"{median(took):.2f}",
        }
        for who, took in seconds.items()
    ]
    return results, figures


if __name__ == "__main__":
    command("explaining", measure, __doc__)
