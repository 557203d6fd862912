"""The networks of the reports in plain PyTorch."""

from __future__ import annotations

from torch import Tensor, nn


class Heads(nn.Module):
    """Layers that all heads share, and those of each: images float32 (B, C, 28, 28) -> {head: logits (B, units)}."""

    def __init__(self, total: int, stem: nn.Module, **heads: nn.Module) -> None:
        super().__init__()
        self.stem, self.heads = stem, nn.ModuleDict(heads)
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        found = sum(p.numel() for p in self.parameters()) + sum(2 * norm.num_features for norm in norms)
        assert found == total, f"{found} parameters, not {total}"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.stem(images)
        return {name: head(maps) for name, head in self.heads.items()}


def branched() -> nn.Module:
    """Report B, section 7.1."""

    def block(channels: int, filters: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, filters, 3, padding=1)
        return [convolution, nn.ReLU(), nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)]

    def end(filters: int, units: int) -> list[nn.Module]:
        return [nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(16 * filters, units)]

    stem = nn.Sequential(*block(3, 32), nn.MaxPool2d(3), nn.Dropout(0.25))
    angle = nn.Sequential(*block(32, 64), *block(64, 64), *end(64, 12))
    others = {name: nn.Sequential(*block(32, 32), *end(32, 1)) for name in ("length", "width", "colour")}
    return Heads(98_927, stem, angle=angle, **others)


def classifier1() -> nn.Module:
    """Report B, section 3.2, on MNIST."""
    stem = nn.Sequential(
        *(nn.Conv2d(1, 32, 7), nn.ReLU(), nn.BatchNorm2d(32, eps=1e-3, momentum=0.01), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 1024, 1), nn.ReLU()),  # dense, at every pixel
    )
    return Heads(1_274_570, stem, digit=nn.Sequential(nn.Flatten(), nn.Linear(121 * 1024, 10)))
