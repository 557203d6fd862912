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
# # 2. Many heads
#
# One image, four questions: how long is the line, how thick, at which angle, of which colour? One network answers all
# four. A common stem sees the image; a branch a head answers. What is trained is the weighted sum of the four losses.
#
# It takes about two minutes on two cores.

# %%
import os
import tempfile

os.chdir(tempfile.mkdtemp())

from PIL import Image, ImageDraw

import cnnlab

# %% [markdown]
# ## Train
#
# The images are drawn while the network is trained: 2 lengths × 2 widths × 12 angles × 2 colours, 200 places of each.

# %%
few = ["data.train_per_class=200", "data.val_per_class=30", "data.test_per_class=50"]
run = cnnlab.train("multihead", seed=0, overrides=few)

# %% [markdown]
# Four heads, four accuracies, and one for "all four right", which is what the reports call the accuracy of the
# multi-head network. Which head is learned last?

# %%
from matplotlib import pyplot as plt

for head in run.heads:
    plt.plot(
        [row["epoch"] for row in run.metrics], [row[f"val/{head.name}/acc"] for row in run.metrics], label=head.name
    )
plt.xlabel("epoch"), plt.ylabel("accuracy on validation"), plt.xticks([1, 2, 3]), plt.legend()
plt.show()

# %% [markdown]
# ## A line of your own
#
# Drawn with Pillow, ten times as large and on white, where the network only ever saw 28 × 28 pixels on black. The data
# set says what it expects, and the notes say what was done to bring the image to it.

# %%
page = Image.new("RGB", (280, 280), "white")
ImageDraw.Draw(page).line((95, 190, 195, 90), fill=(255, 0, 0), width=30)
answer = run.predict(page)
print(answer)
print(*answer.inputs.notes[0], sep="; ")

# %% [markdown]
# ## Each head has its own evidence
#
# The same image, four heads, four maps. For "long" the ends of the line should matter, for "red" any piece of it. Do the
# maps differ as the questions do? Often they are more alike than one expects.

# %%
example = run.examples(1)
for head in run.heads:
    display(run.attribute(example, head=head.name))

# %% [markdown]
# ## Sure of nonsense
#
# A network answers anything. A blank image is "short"; a green line is "red", or "blue", and how sure it is says nothing:

# %%
green = page.point(lambda value: value)
ImageDraw.Draw(green).rectangle((0, 0, 280, 280), fill="black")
ImageDraw.Draw(green).line((95, 190, 195, 90), fill=(0, 255, 0), width=30)
blank = Image.new("RGB", (28, 28))
print(run.predict([page, green, blank]))

# %% [markdown]
# The warning does not come from the probabilities. Each run keeps the features of 2,000 of its training images; an image
# that is further from all of them than 999 of 1,000 validation images is unlike what the network was trained on, and is
# told so.
#
# ## Teach it green
#
# Report B's remark: to know a third colour only the colour head has to be trained again. The other heads stay as they
# are, bit for bit, and never see a green line.

# %%
taught = cnnlab.train("add_colour", overrides=[f"init_from={run.path}", *few, "trainer.max_epochs=1"])
print(taught.predict([page, green]))

# %% [markdown]
# The colour head now knows green. What do the others say of a green line? Compare with the red one of the same place:
# they were never told that colour does not matter. The results page says what helps (a network that is blind to hue).
#
# **To try:** `weighting.weights.angle=50`, Report A's remedy for the slowest head; `weighting=uncertainty`, which learns
# the weights; `experiment=multihead_v1`, the reports' first network.
