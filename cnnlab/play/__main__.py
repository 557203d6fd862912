"""python -m cnnlab.play: a page in the browser on which one plays with a trained network."""

from cnnlab.cli import command

if __name__ == "__main__":
    command("play", "cnnlab.play.server.play_run")
