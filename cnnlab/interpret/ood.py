"""Out-of-distribution detection: how unlike the training images an image is.

The score is the distance to the nearest training image (Sun et al. 2022). Its features are the mean and the maximum of
every channel of the image and of every convolution (Lee et al. 2018 use all layers, too). All layers weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnlab.interpret.network import batch_size, convolutions, frozen_copy, record_activations
from cnnlab.utils.checkpoints import checkpoint_path, load_checkpoint
from cnnlab.utils.errors import UserError, user_errors

OOD = "ood"  # the name of its checkpoint file
REFERENCE = 2000  # training images that are kept
CALIBRATION = 5000  # held-out images, at most, for the limit
QUANTILE = 0.999  # of the held-out images lie within the limit
MARGIN = 10  # the limit is wider by MARGIN / n: with few held-out images it is not known well


@dataclass(frozen=True)
class OODDetector:
    """The features of training images, `reference` (R, D), standardised by `centre` and `scale` (D,); `limit` () is
    the distance within which 99.9 % of held-out images lie. Raises `ValueError` for other shapes."""

    reference: Tensor
    centre: Tensor
    scale: Tensor
    limit: Tensor

    def __post_init__(self) -> None:
        if not (self.reference.shape[1:] == self.centre.shape == self.scale.shape and self.limit.numel() == 1):
            raise ValueError("the shapes do not fit")

    def scores(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return the distance of `images` float32 (N, C, H, W) in [0, 1] to the nearest training image, in units of the
        limit, float32 (N,). Raises `UserError` for another network."""
        features, _ = _features(net, images)
        if features.shape[1:] != self.centre.shape:
            raise UserError("the training images that were kept are those of another network")
        return _distances((features - self.centre) / self.scale, self.reference.float()) / self.limit


def load_ood_detector(folder: Path) -> OODDetector | None:
    """Load the detector of a run; None where it has none."""
    path = checkpoint_path(folder, OOD)
    if not path.is_file():
        return None
    with user_errors(str(path)):
        state = load_checkpoint(path)["state_dict"]
    try:
        return OODDetector(**state)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: it holds no features of training images") from error


def fit_ood_detector(net: nn.Module, train: Tensor, held_out: Tensor) -> OODDetector:
    """Return a detector for images like `train`, calibrated on `held_out`, float32 (N, C, H, W) in [0, 1]."""
    (known, widths), (others, _) = _features(net, train), _features(net, held_out)
    centre = known.mean(dim=0)
    scale = known.std(dim=0, correction=0).clamp(min=1e-3) * widths.sqrt()  # every layer weighs the same
    reference = ((known - centre) / scale).half()
    distances = _distances((others - centre) / scale, reference.float())
    margin = 1 + MARGIN / len(distances)
    return OODDetector(reference, centre, scale, margin * distances.quantile(QUANTILE).clamp(min=1e-6))


def _features(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and maximum of every channel of images and convolutions, float32 (N, D), and for each feature how
    many its layer has, float32 (D,)."""
    net = frozen_copy(net).cpu()
    parts = []
    with record_activations(net, convolutions(net)) as outputs, torch.no_grad():
        for batch in images.split(batch_size(images)):
            net(batch)
            maps = [batch, *(outputs[name] for name in sorted(outputs))]
            layers = [torch.cat([m.mean(dim=(2, 3)), m.amax(dim=(2, 3))], dim=1).float() for m in maps]
            parts.append(torch.cat(layers, dim=1))
    return torch.cat(parts), torch.cat([torch.full((layer.shape[1],), float(layer.shape[1])) for layer in layers])


def _distances(features: Tensor, reference: Tensor) -> Tensor:
    """Return the distance to the nearest of `reference` (R, D), float32 (N,)."""
    return torch.cat([torch.cdist(part, reference).amin(dim=1) for part in features.split(1000)])
