"""Methods that show what a trained network learned. They take any `nn.Module`, and know nothing of
Lightning, Hydra or run folders; `python -m cnnlab.explain` is the command."""
