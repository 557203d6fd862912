"""python -m research.renderers: does a trained network read lines that other programs drew?"""

from cnnlab.cli import command
from research import CONF

if __name__ == "__main__":
    command("renderers", "research.renderers.report.robustness_run", conf=CONF)
