"""A small vision transformer for the benchmark (Dosovitskiy et al. 2021), of torchvision's layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import VisionTransformer

from cnnlab.models.heads import Head


class SmallViT(nn.Module):
    """torchvision's vision transformer with one dense layer per head: images float32 (B, 3, H, W) to {head: logits}."""

    def __init__(
        self, image_shape: Sequence[int], heads: Sequence[Head], patch_size: int = 4, layers: int = 4, width: int = 64
    ) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.vit = VisionTransformer(image_shape[1], patch_size, layers, 4, width, 2 * width, num_classes=1)
        self.vit.heads = nn.Identity()
        self.out = nn.ModuleDict({f"{head.name}_head": nn.Linear(width, head.units) for head in heads})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.vit(images)
        return {name.removesuffix("_head"): layer(features) for name, layer in self.out.items()}
