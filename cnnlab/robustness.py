"""python -m cnnlab.robustness: does a trained network read lines that others drew?"""

from cnnlab.cli import command

if __name__ == "__main__":
    command("robustness", "cnnlab.robustness_report.robustness_run")
