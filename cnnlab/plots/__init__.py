"""Arrays to pictures: the only part that draws with matplotlib. It knows nothing
of the rest."""

from matplotlib.figure import Figure

from cnnlab.plots.charts import by_epoch, comparison, curves, f_scores, intervals, seeds, shares
from cnnlab.plots.style import Array, save
from cnnlab.plots.tables import by_class, confusion, grouped_f_scores
from cnnlab.plots.tiles import heat, heat_tables, images, mosaics, overlay, small_images

__all__ = [
    "Array",
    "Figure",
    "by_class",
    "by_epoch",
    "comparison",
    "confusion",
    "curves",
    "f_scores",
    "grouped_f_scores",
    "heat",
    "heat_tables",
    "images",
    "intervals",
    "mosaics",
    "overlay",
    "save",
    "seeds",
    "shares",
    "small_images",
]
