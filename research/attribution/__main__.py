"""python -m research.attribution: grade many attribution methods on many networks."""

from cnnlab.cli import command
from research import CONF

if __name__ == "__main__":
    command("attribution", "research.attribution.report.benchmark_run", conf=CONF)
