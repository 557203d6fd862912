"""cnnlab: a small, exact laboratory for convolutional networks."""

__version__ = "0.2.0"
