"""A page in the browser on which one plays with a trained network: `python -m cnnlab.play`."""
