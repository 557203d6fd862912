"""cnnlab: a small, exact laboratory for convolutional networks."""

__version__ = "0.1.0"

IMAGE_SIZE = 28  # pixels; every image of the lab is IMAGE_SIZE x IMAGE_SIZE


class UserError(ValueError):
    """A mistake that the user can mend. Commands print it as one line, without a traceback."""


class Diverged(UserError):
    """The numbers of a training went bad: from here on nothing is learned any more."""
