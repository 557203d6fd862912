"""All figures: arrays to matplotlib figures in one style."""

from matplotlib.figure import Figure

from cnnlab.plots.architecture import architecture
from cnnlab.plots.charts import by_epoch, comparison, curves, f_scores
from cnnlab.plots.style import Array, save
from cnnlab.plots.tables import checks, confusion
from cnnlab.plots.tiles import heat, heat_tables, images, mosaics, overlay, small_images

__all__ = [
    "Array",
    "Figure",
    "architecture",
    "by_epoch",
    "checks",
    "comparison",
    "confusion",
    "curves",
    "f_scores",
    "heat",
    "heat_tables",
    "images",
    "mosaics",
    "overlay",
    "save",
    "small_images",
]
