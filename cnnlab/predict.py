"""python -m cnnlab.predict: what a trained network says to images of your own."""

from cnnlab.cli import command

if __name__ == "__main__":
    command("predict", "cnnlab.prediction.predict_run")
