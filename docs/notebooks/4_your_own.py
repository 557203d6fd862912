# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Your own data, network and method
#
# What cnnlab does with lines and digits it does with your images and your network. There are two ways in: bring a
# trained `nn.Module` and look at it, or describe a data set and a network in a file each and train them here.
#
# It takes about a minute on two cores.

# %%
import os
import sys
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp())
sys.path.insert(0, os.getcwd())

import torch
from torch import nn

import cnnlab

# %% [markdown]
# ## A network that is there already
#
# Any `nn.Module`. Networks with several heads, in a dict or a tuple, are what other tools stumble over; here `head` is
# the key or the place. The images are float32 (N, C, H, W), of any size.


# %%
class Somebody(nn.Module):
    """A network from elsewhere: two heads in a tuple, layers by any name."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
        self.kind, self.age = nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, images):
        pooled = self.features(images).relu().mean(dim=(2, 3))
        return self.kind(pooled), self.age(pooled)


torch.manual_seed(0)
net, images = Somebody(), torch.rand(2, 3, 40, 60)
cnnlab.attribute(net, images, head=1, method="grad_cam")

# %%
result = cnnlab.attribute(net, images, target=2, head=0, method="occlusion", sliding_window_shapes=9, strides=3)
result.maps.shape, result.targets

# %% [markdown]
# ## A data set of your own
#
# A subclass of `ImageDataModule` that knows its `heads`, its `image_shape` and its three splits; and a file that names
# it. Here: squares and discs, light or dark, drawn when they are asked for.

# %%
_ = Path("shapes.py").write_text('''
import torch
from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.models.heads import Head


class Shapes(BatchedDataset):
    """Squares and discs on 1 x 32 x 32, number `first` to `first + size` of one long row of images."""

    def __init__(self, first, size):
        self.first, self.size = first, size

    def __len__(self):
        return self.size

    def targets(self, indices):
        number = indices + self.first
        return {"shape": number % 2, "shade": number // 2 % 3}

    def images(self, indices):
        images = torch.zeros(len(indices), 1, 32, 32, dtype=torch.uint8)
        rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        for image, index in zip(images, indices.tolist()):
            generator = torch.Generator().manual_seed(index + self.first)  # image i is a function of i
            x, y, size = torch.rand(3, generator=generator) * torch.tensor([14, 14, 5]) + torch.tensor([9, 9, 4])
            targets = self.targets(torch.tensor(index))
            dx, dy = (columns - x).abs(), (rows - y).abs()
            distance = torch.maximum(dx, dy) if targets["shape"] == 0 else (dx**2 + dy**2).sqrt()
            image[0] = (size + 0.5 - distance).clamp(0, 1) * (85 + 85 * targets["shade"])  # with soft edges
        return images


class ShapesDataModule(ImageDataModule):
    heads = (Head("shape", ("square", "disc")), Head("shade", ("dark", "middle", "light")))
    image_shape = (1, 32, 32)

    def setup(self, stage=None):
        self.splits = {"train": Shapes(0, 2400), "val": Shapes(2400, 300), "test": Shapes(2700, 300)}
''')
Path("conf/data").mkdir(parents=True)
_ = Path("conf/data/shapes.yaml").write_text("_target_: shapes.ShapesDataModule\nseed: ${seed}\nbatch_size: 60\n")

# %% [markdown]
# ## A network of your own
#
# A stem, and a branch a head: layers by name. Head, loss, metrics, pictures and explanations follow from the data set.

# %%
_ = Path("small.py").write_text("""
from torch import nn
from cnnlab.models.networks import MultiHeadNet


class Small(MultiHeadNet):
    def __init__(self, image_shape, heads, filters=8):
        stem = {
            "conv1": nn.Conv2d(image_shape[0], filters, 5), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(filters, 2 * filters, 3), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
        }
        super().__init__(image_shape, heads, stem)
""")
Path("conf/net").mkdir()
_ = Path("conf/net/small.yaml").write_text("_target_: small.Small\nfilters: 8\n")

# %% [markdown]
# ## Train it
#
# The files stand beside ours: `data=shapes net=small`. `experiment=mnist` is only the recipe that the rest is taken from.
# On the command line it is `python -m cnnlab.train --config-dir conf experiment=mnist data=shapes net=small`.

# %%
recipe = ["data=shapes", "net=small", "optimizer.lr=0.003", "lr_scheduler=one_cycle", "trainer.max_epochs=10"]
run = cnnlab.train("mnist", overrides=recipe, config_dir="conf")

# %% [markdown]
# "In more than one split" should be 0: the run counts how many test images also stand in the training set. Draw the
# shapes at whole pixels (`x.round()`), and it no longer is, as there are then only so many ways to place one.

# %%
run.predict(run.examples(6))

# %%
run.attribute(run.examples(2), head="shape")

# %% [markdown]
# ## A method of your own
#
# A function (network, images, targets) to maps, in Python as it is, or for the commands by a file in `conf/method/` or
# by its dotted name: `python -m cnnlab.explain +method.mine._target_=mine.gradient_times_input`.


# %%
def gradient_times_input(net, images, targets):
    images = images.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(net(images).gather(1, targets[:, None]).sum(), images)
    return (images * slopes).sum(dim=1)


run.attribute(run.examples(2), head="shape", method=gradient_times_input)

# %% [markdown]
# The audit says which method can be trusted for this network. Give the data set `truths` (see `LineDataset.truths`),
# and heatmaps are also compared with them.

# %%
run.audit(["grad_cam", gradient_times_input], images=60)
