"""A user's own network and images, on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.transforms import CenterCrop, Compose, Grayscale, Resize, ToTensor

from cnnlab.data.image_io import image_files, open_in_colour
from cnnlab.interpret.inputs import Inputs
from cnnlab.interpret.network import batch_size, head_parts
from cnnlab.models.heads import Head
from cnnlab.utils.cli import as_list
from cnnlab.utils.console import echo
from cnnlab.utils.errors import UserError, did_you_mean, one_line, user_errors

Transform = Callable[[Image.Image], Tensor]
ONLY_HEAD = "answer"  # of a network that answers one tensor


class OwnNetwork:
    """A network with images that is no run: what `explain` and `audit` take in its place. `cfg` has the settings `run`,
    `net`, `weights`, `images` and `image_size`. Raises `UserError` for a network or images that cannot be read."""

    def __init__(self, cfg: DictConfig) -> None:
        if cfg.run is not None:
            raise UserError("give run or net, not both")
        self.net, transform = open_network(cfg.net, cfg.weights)
        if cfg.images is None or isinstance(cfg.images, int):
            raise UserError("images=<folder> is needed with net=<function>")
        grey = next((layer.in_channels == 1 for layer in self.net.modules() if isinstance(layer, nn.Conv2d)), False)
        self.inputs = read_images(as_list(cfg.images), transform, cfg.image_size, grey)
        if transform is None:
            echo("! the images are not normalised; where the network needs it, let net return (net, transform)")
        self.title = self.path = str(cfg.net._target_)
        self.image_shape, self.baseline_images = tuple(self.inputs.images.shape[1:]), self.inputs.images

    def named_heads(self) -> dict[Head, Any]:
        """Return {head: its key in the network's answer}. Classes are called by their numbers."""
        images, heads = self.inputs.images[: batch_size(self.inputs.images)], dict[Head, Any]()
        with user_errors(f"net={self.title}"), torch.no_grad():
            answers = head_parts(self.net(images), len(images))
        for key, part in answers.items():
            classes = tuple(map(str, range(max(2, part.shape[1]))))
            try:
                heads[Head(str(ONLY_HEAD if key is None else key), classes)] = key
            except ValueError:  # a number, or a name that means something else here
                heads[Head(re.sub(r"[./\\\"'\n]", " ", f"head {key}"), classes)] = key
        return heads


def own_network(cfg: DictConfig) -> OwnNetwork | None:
    """Return the network of the setting `net`, or None where it is not set."""
    if cfg.net._target_ is not None:
        return OwnNetwork(cfg)
    if cfg.weights is not None:
        raise UserError("weights=<file> goes with net=<function>")
    return None


def open_network(node: DictConfig, weights: str | None = None) -> tuple[nn.Module, Transform | None]:
    """Return a network, and the transform from a PIL image to its input (C, H, W) or None.

    The `_target_` of `node` is a function in an importable module, as "torchvision.models.resnet18". It returns the
    network, or (network, transform). `weights` is a file with its `state_dict`. Raises `UserError` for anything else.
    """
    package, _, name = str(node._target_).rpartition(".")
    module = None
    with suppress(ImportError, ValueError):  # a class, or no package: Hydra finds it, or says what is wrong
        module = import_module(package)
    if module is not None and not hasattr(module, name):
        public = [known for known in dir(module) if not known.startswith("_")]
        raise UserError(f"net={node._target_}: there is no {name} in {package}{did_you_mean(name, public)}")
    with user_errors(f"net={node._target_}"):
        made = instantiate(node, _convert_="all")
        net, transform = made if isinstance(made, tuple) else (made, None)
        if not isinstance(net, nn.Module):
            raise UserError(f"it returns a {type(net).__name__}, not an nn.Module")
        net = getattr(net, "_orig_mod", net)  # of torch.compile
    if weights is not None:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"there is no file {weights} for weights=") from None
        except Exception as error:  # torch raises all kinds
            raise UserError(f"weights={weights} is no state_dict that can be read ({type(error).__name__})") from error
        for name in ("state_dict", "model_state_dict", "model"):  # what trainings keep beside it
            state = state.get(name, state) if isinstance(state, dict) else {}
        with user_errors(f"weights={weights}"):
            consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
            net.load_state_dict(state)
    return net.eval(), transform


def read_images(words: Sequence[str], transform: Transform | None, size: int, grey: bool = False) -> Inputs:
    """Return the images of files, folders and patterns, float32 (N, C, H, W). Without `transform` they are resized and
    cropped to `size` x `size` with values in [0, 1], in colour or `grey`. Raises `UserError` for an unreadable one."""
    change = transform or Compose([*([Grayscale()] if grey else []), Resize(size), CenterCrop(size), ToTensor()])
    images, files = [], image_files(words)
    for file in files:
        picture = open_in_colour(file)
        try:
            images.append(change(picture))
            if not isinstance(images[-1], Tensor):
                raise TypeError(f"it returns a {type(images[-1]).__name__}")
            if images[-1].shape != images[0].shape:
                raise ValueError(f"shapes {tuple(images[0].shape)} and {tuple(images[-1].shape)}")
        except Exception as error:  # of a user's function
            raise UserError(f"the transform of net gives no tensors of one shape: {one_line(error)}") from error
    names = [file.name for file in files]
    notes = [[] if transform else [f"cropped to {size} x {size}, values in [0, 1], not normalised"] for _ in files]
    return Inputs(
        torch.stack(images), names if len(set(names)) == len(names) else [str(file) for file in files], None, notes
    )
