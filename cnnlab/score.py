"""python -m cnnlab.score: are the heatmaps of a trained network right?"""

from cnnlab.cli import command

if __name__ == "__main__":
    command("score", "cnnlab.explain.evaluation_report.score_run")
