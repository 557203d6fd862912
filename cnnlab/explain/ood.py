"""How unlike the training images an image is: a network answers anything, and is often surest of nonsense.

The distance to the nearest training image (Sun et al. 2022), in the mean and the highest value of every channel of
the image and of every convolution (Lee et al. 2018 look at all layers), every layer weighing the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError
from cnnlab.explain.network import frozen_copy, leaf_modules, record_activations

REFERENCE = 2000  # training images that are kept
CALIBRATION = 5000  # held-out images, at most, from which the limit is found
USUAL = 0.999  # the share of held-out images that is within the limit
BATCH = 250


@dataclass(frozen=True)
class OODDetector:
    """Knows the training images by their features: `reference` (R, D), standardised by `centre` and `scale` (D,);
    `limit` is the distance within which 99.9 % of held-out images lie."""

    reference: Tensor
    centre: Tensor
    scale: Tensor
    limit: float

    def scores(self, net: nn.Module, images: Tensor) -> Tensor:
        """The distance of `images` float32 (N, C, H, W) in [0, 1] to the nearest training image, float32 (N,), in
        units of the limit: above 1 an image is less like them than all but one in a thousand. Raises `UserError`
        where the detector is another network's."""
        features, _ = _features(net, images)
        if features.shape[1:] != self.centre.shape:
            raise UserError("the training images that were kept are those of another network")
        return _distances((features - self.centre) / self.scale, self.reference.float()) / self.limit

    def state(self) -> dict[str, Tensor]:
        """Everything in it as tensors."""
        return {**vars(self), "limit": torch.tensor(self.limit)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> OODDetector:
        """The detector whose `state` this is. Raises `ValueError` where it is none."""
        try:
            reference, centre, scale, limit = (state[name] for name in ("reference", "centre", "scale", "limit"))
            if not (reference.shape[1:] == centre.shape == scale.shape and limit.numel() == 1):
                raise ValueError
            return cls(reference, centre, scale, limit.item())
        except (KeyError, AttributeError, ValueError) as error:
            raise ValueError("it is not what was kept of the training images") from error


def fit_ood_detector(net: nn.Module, train: Tensor, held_out: Tensor) -> OODDetector:
    """A detector that knows `train` and is calibrated on `held_out`, images float32 (N, C, H, W) in [0, 1]."""
    (known, widths), (others, _) = _features(net, train), _features(net, held_out)
    centre = known.mean(dim=0)
    scale = known.std(dim=0, correction=0).clamp(min=1e-3) * widths.sqrt()  # a wide layer weighs no more than another
    reference = ((known - centre) / scale).half()
    distances = _distances((others - centre) / scale, reference.float())
    return OODDetector(reference, centre, scale, max(1e-6, distances.quantile(USUAL).item()))


def _features(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the highest value of every channel of the images and of what every convolution makes of them,
    float32 (N, D), and how many of the D are of the same layer, float32 (D,). A 1 x 1 convolution, a dense layer at
    every pixel, does not count."""
    net = frozen_copy(net).cpu()
    convolutions = [
        name
        for name, layer in leaf_modules(net).items()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    parts = []
    with record_activations(net, convolutions) as found, torch.no_grad():
        for batch in images.split(BATCH):
            net(batch)
            outputs = [batch, *(found[name] for name in sorted(found))]
            layers = [torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1).float() for maps in outputs]
            parts.append(torch.cat(layers, dim=1))
    return torch.cat(parts), torch.cat([torch.full((layer.shape[1],), float(layer.shape[1])) for layer in layers])


def _distances(features: Tensor, reference: Tensor) -> Tensor:
    """To the nearest of `reference` (R, D), float32 (N,)."""
    return torch.cat([torch.cdist(part, reference).amin(dim=1) for part in features.split(1000)])
