"""python -m cnnlab.explain: show what a trained network learned."""

from cnnlab.cli import command

if __name__ == "__main__":
    command("explain", "cnnlab.explain.explanation_report.explain_run")
