"""Data sets: what the images are, where they come from, and how the splits are kept apart."""
