"""Arrays to pictures: the only part that imports matplotlib. It knows nothing of the rest."""

from matplotlib.figure import Figure

from cnnlab.figures.charts import comparison, curves, evidence, f_scores, intervals, shares, weights
from cnnlab.figures.style import Array, save
from cnnlab.figures.tables import by_class, confusion, grouped_f_scores
from cnnlab.figures.tiles import heat, images, mosaics, overlay

__all__ = [
    "Array",
    "Figure",
    "by_class",
    "comparison",
    "confusion",
    "curves",
    "evidence",
    "f_scores",
    "grouped_f_scores",
    "heat",
    "images",
    "intervals",
    "mosaics",
    "overlay",
    "save",
    "shares",
    "weights",
]
