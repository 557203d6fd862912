"""How often the audit errs: deliberately broken methods, sound ones, and networks to try them on.

python -m research.attribution.broken              # 20 small networks of seeds 0 to 19
python -m research.attribution.broken shortcut     # the same, which decide by a pattern in a corner
python -m research.attribution.broken <run> ...    # or trained runs
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.api import load
from cnnlab.interpret.attribution import Method, to_image
from cnnlab.interpret.audit import AVOID, AuditResult, audit
from cnnlab.interpret.controls import randomise
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.methods.gradients import input_x_gradient
from cnnlab.interpret.metrics import sobel
from cnnlab.interpret.network import HeadWrapper
from cnnlab.interpret.registry import named_methods


def cam(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return Grad-CAM at the image's size."""
    return to_image(grad_cam(net, images, targets), net, images)


def noise(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return random maps (N, H, W), the same for the same image."""
    drawn = [torch.Generator().manual_seed(int(1e4 * image.sum().item()) % 2**31) for image in images]
    return torch.stack([torch.rand(images.shape[2:], generator=generator) for generator in drawn])


def untrained_cam(net: HeadWrapper, images: Tensor, targets: Tensor) -> Tensor:
    """Return the maps of random weights that are not among the audit's own."""
    return cam(HeadWrapper(randomise(net.net, seed=77), net.head), images, targets)


def with_corner(maps: Tensor) -> Tensor:
    """Return maps (N, H, W) whose upper left quarter of both sides is brighter by 0.8 times their maximum."""
    maps, (rows, columns) = maps.clone(), (length // 4 for length in maps.shape[1:])
    maps[:, :rows, :columns] += 0.8 * maps.amax(dim=(1, 2), keepdim=True)
    return maps


BROKEN: dict[str, Method] = {
    "shifted": lambda net, images, targets: torch.roll(cam(net, images, targets), images.shape[3] // 4, dims=2),
    "mirrored": lambda net, images, targets: cam(net, images, targets).flip(2),
    "transposed": lambda net, images, targets: cam(net, images, targets).transpose(1, 2),
    "with its mirror image": lambda net, images, targets: (maps := cam(net, images, targets)) + maps.flip(2),
    "with half its mirror image": lambda net, images, targets: (maps := cam(net, images, targets)) + maps.flip(2) / 2,
    "with a bright corner": lambda net, images, targets: with_corner(cam(net, images, targets)),
    "half its size": lambda net, images, targets: F.pad(
        F.avg_pool2d(cam(net, images, targets), 2), (images.shape[3] // 4,) * 4),
    "sign flipped": lambda net, images, targets: -input_x_gradient(net, images, targets),
    "edge detector": lambda net, images, targets: sobel(images),
    "blurred edges": lambda net, images, targets: F.avg_pool2d(sobel(images)[:, None], 5, 1, 2)[:, 0],
    "noise": noise,
    "constant": lambda net, images, targets: torch.ones_like(images[:, 0]),
    "one channel": lambda net, images, targets: images[:, 0],
    "another class": lambda net, images, targets: cam(net, images, (targets + 1) % net.classes(images)),
    "random weights": untrained_cam,
    "another image": lambda net, images, targets: cam(net, images, targets).roll(1, dims=0),
    "new noise": lambda net, images, targets: torch.rand_like(images[:, 0]),
}  # fmt: skip
SOUND = named_methods(["grad_cam", "input_x_gradient", "deep_lift"])


PATTERNS = torch.tensor(  # of the shortcut, one for each class
    [[[1, 0, 1, 0]] * 4, [[1] * 4, [0] * 4] * 2, [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2], dtype=torch.float32
)


def toy_network(
    channels: int, side: int, seed: int = 0, classes: int = 3, shortcut: bool = False
) -> tuple[nn.Module, Tensor]:
    """Return a small network that tells the size of a bright square on noise, and 48 images (N, C, side, side). With
    `shortcut` the square says nothing: a small pattern in the lower right corner tells the class."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        images = 0.3 * torch.rand(count, channels, side, side, generator=generator)
        kinds = torch.randint(classes, (count,), generator=generator)
        for image, kind in zip(images, kinds.tolist(), strict=True):
            size = 3 + 3 * (int(torch.randint(classes, (), generator=generator)) if shortcut else kind)
            y, x = torch.randint(side - size, (2,), generator=generator).tolist()
            image[:, y : y + size, x : x + size] += 0.6
            if shortcut:
                image[:, -4:, -4:] = PATTERNS[kind]
        return images, kinds

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        images, kinds = draw(64)
        optimizer.zero_grad()
        F.cross_entropy(net(images), kinds).backward()
        optimizer.step()
    return net.eval(), draw(48)[0]


def audits(runs: list[str]) -> list[AuditResult]:
    """Audit all methods on the small networks, or on 50 test images of each run."""
    methods = {**SOUND, **BROKEN}
    if not runs or runs == ["shortcut"]:
        return [audit(*toy_network(3, 32, seed, shortcut=bool(runs)), methods) for seed in range(20)]
    return [audit(run.net, run.examples(50).images, methods) for run in map(load, runs)]


def main() -> None:
    """Print, for each method, how often it is called what, over networks and heads."""
    results = audits(sys.argv[1:])
    rows = [(name, verdict) for result in results for (name, _), (verdict, _) in result.by_head.items()]
    for name in (*SOUND, *BROKEN):
        print(f"{name:16}", dict(Counter(verdict for method, verdict in rows if method == name)))
    for title, names, wrong in (("broken, not refused", BROKEN, False), ("sound, refused", SOUND, True)):
        words = [verdict for method, verdict in rows if method in names]
        print(f"{title}: {sum((word == AVOID) is wrong for word in words)} of {len(words)}")


if __name__ == "__main__":
    main()
