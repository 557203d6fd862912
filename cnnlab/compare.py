"""python -m cnnlab.compare: many runs in one table, with their learning curves."""

from cnnlab.cli import command

if __name__ == "__main__":
    command("compare", "cnnlab.comparison_report.compare_runs")
