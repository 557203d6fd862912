"""What a trained network learned, and whether what shows it is right.

The methods (`probe`, `activations`, `filters`, `heatmaps`, `scores`) take any `nn.Module` and know nothing of
Lightning, Hydra or run folders. `explanation` and `score_card` apply them to a run.
"""
