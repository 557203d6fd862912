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
# # 3. Is the heatmap right?
#
# A heatmap always looks like something. To know whether it shows why the network answers as it does, one needs the
# truth, and with photographs nobody has it. With lines that we draw ourselves, we do.
#
# It takes about two minutes on two cores.

# %%
import os
import tempfile

os.chdir(tempfile.mkdtemp())

import torch
from matplotlib import pyplot as plt

import cnnlab

few = ["data.train_per_class=200", "data.val_per_class=30", "data.test_per_class=50"]
run = cnnlab.train("multihead", seed=0, overrides=few)

# %% [markdown]
# ## The exact truth
#
# Which pixels make a short line *short*? Draw the same line long: the pixels that differ are the ones that tell short
# from long. Nothing else in the image can. That is the **counterfactual truth** of a head, and it is exact.

# %%
split, rows = run.test_split, torch.tensor([100])
image = split.images(rows)[0].permute(1, 2, 0)
figure, panels = plt.subplots(1, 5, figsize=(12, 2.8))
panels[0].imshow(image), panels[0].set_title("the image")
for panel, head in zip(panels[1:], run.heads, strict=True):
    truth = split.truths(rows, head)["counterfactual"][0]
    panel.imshow(truth, cmap="gray"), panel.set_title(f"{head.name}: {int(truth.sum())} pixels")
for panel in panels:
    panel.set_axis_off()
plt.show()

# %% [markdown]
# For "short" they lie beyond the ends of the line, in the black. A heatmap that only shows the line cannot be right.
#
# ## Compare the heatmaps with them
#
# How many of the K brightest pixels are right, where K are right? The audit also makes every other check below.

# %%
audit = run.audit(["grad_cam", "saliency", "occlusion"], images=100)
table = audit.to_pandas()
table.query("check == 'right pixels'").pivot(index="method", columns="head", values="value").round(3)

# %% [markdown]
# The last rows need no network: a random map, an edge detector, the brightness of the image. On a black background they
# find most right pixels. So this number alone does not show that a method explains the network.
#
# ## Which one looks at the network?
#
# The audit therefore plants evidence. It paints a marker and a lookalike into each image, and a copy of the network
# learns to decide by the marker. Maps that need no network score 0 here.

# %%
table.query("check == 'planted marker'").pivot(index="method", columns="head", values="value").round(3)

# %%
audit

# %% [markdown]
# ## Does it depend on the network at all?
#
# Adebayo et al. (2018) replace the weights by random ones. Where the map stays the same, it did not explain the network:

# %%
table.query("check == 'likeness to random weights'").pivot(index="method", columns="head", values="value").round(3)

# %% [markdown]
# Near 0 is good. A correlation near 1 would say that the map shows the image, not the network. Pixels that are 0 in both
# maps are left out: on black images they would make any two maps look alike.
#
# ## A method of your own
#
# Any function from (network, images, targets) to maps. This one looks at what happens when a whole column or row is
# taken away:


# %%
def columns_and_rows(net, images, targets):
    def score(changed):
        with torch.no_grad():
            return net(changed).gather(1, targets[:, None])[:, 0]

    before, maps = score(images), torch.zeros(len(images), *images.shape[2:])
    for place in range(images.shape[3]):
        column = images.clone()
        column[..., place] = 0
        maps[:, :, place] += (before - score(column))[:, None]
    for place in range(images.shape[2]):
        row = images.clone()
        row[:, :, place] = 0
        maps[:, place, :] += (before - score(row))[:, None]
    return maps


run.attribute(run.examples(2), head="angle", method=columns_and_rows)

# %%
own = run.audit({"grad_cam": "grad_cam", "columns and rows": columns_and_rows}, images=100)
own.to_pandas().query("check == 'planted marker'").pivot(index="method", columns="head", values="value").round(3)

# %% [markdown]
# **To try:** is a larger window better for occlusion (`run.attribute(..., method="occlusion", sliding_window_shapes=7)`)? Take the
# absolute value of a map in a method of your own, and grade both. What does the truth of `colour` look like, and why is
# it the line and nothing but the line?
