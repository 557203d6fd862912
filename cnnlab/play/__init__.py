"""The Play page: look inside a trained network in the browser, `python -m cnnlab.play`."""
