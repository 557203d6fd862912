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
# # 1. Train and look
#
# The two reports that cnnlab reimplements ask three questions. Can one small network tell things apart? Can it answer
# several questions about one image at once? And what has it learned? This notebook takes handwritten digits for the
# first and the third; [the next](2_many_heads.py) takes lines for the second.
#
# It takes about a minute on two cores. Everything is written to a folder of its own, which the first cell makes.

# %%
import os
import tempfile

os.chdir(tempfile.mkdtemp())

import cnnlab

# %% [markdown]
# ## Train
#
# Report B's network for digits: one convolution of 32 filters, 7 × 7, and a dense layer of 1,024 units. A fifth of the
# images and three passes over them are enough to look at. Everything that the command line can set, `overrides` can.

# %%
quick = ["data.train_size=12000", "trainer.max_epochs=3", "bn_momentum=0.1"]  # 282 steps are too few for 0.01
run = cnnlab.train("mnist", seed=0, overrides=quick)

# %% [markdown]
# The line "distinct images" says how the data was split: no test image stands in the training set, and the run counts that
# rather than believing it. The run is a folder with everything in it, weights, numbers, pictures, a page:

# %%
print(run.path.relative_to(os.getcwd()))
from cnnlab.utils.console import percent

test = run.summary["test"]
print("right on", percent(test["joint_accuracy"]), "of", int(test["images"]), "test images")

# %% [markdown]
# ## What does it say?
#
# `examples` picks test images that differ in their class. The first is the mistake that the network is surest of.

# %%
examples = run.examples(8)
run.predict(examples)

# %%
truth = [run.head().classes[k] for k in examples.truth["digit"].tolist()]
print("truth     ", *truth)
print("prediction", *run.predict(examples)["digit"])

# %% [markdown]
# As a table, for counting and plotting:

# %%
run.predict(examples).to_pandas()[["image", "digit", "digit_probability"]]

# %% [markdown]
# ## What do its layers make of an image?
#
# The first convolution of the network, with each image on the left and the answers of the 32 filters beside it. Some
# find edges of one direction, others ink, others ground.

# %%
run.activations(run.examples(3), "stem.conv")

# %% [markdown]
# ## What does it ask for?
#
# The reports' second look: begin with a blank image and climb the gradient until a class is as strong as can be. What
# comes out is not a digit. It holds strokes that speak for the class, wherever they fit: the network never had to know
# what a digit is, only what tells ten of them apart.

# %%
run.visualize_features("digit")

# %% [markdown]
# ## Where does it look?
#
# The reports' third look, Grad-CAM: which places of the last feature maps raise the score of the class that was
# predicted. The number above a map is its largest value; brightness is relative to it.

# %%
run.attribute(run.examples(3), method="grad_cam")

# %% [markdown]
# A map can be black, with "largest 0" above it: then Grad-CAM found no place that raises the score. That is an answer of
# the method, not of the network. Where a map is bright, is it *right*? With digits nobody knows, because there is no true
# "why" of a three. That is why cnnlab also has lines, where every pixel's part is known:
# [notebook 3](3_is_the_heatmap_right.py).
#
# **To try:** train with `net.kernel_size=5`; explain the class that was *not* predicted (`target="8"`); give it a
# photograph of your own digit (`run.predict("photo.jpg")`), dark on light, as large as you like.
