"""Data modules, line rendering, and image reading."""
