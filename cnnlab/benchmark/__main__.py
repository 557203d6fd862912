"""python -m cnnlab.benchmark: which explanation can one trust?"""

from cnnlab.cli import command

if __name__ == "__main__":
    command("benchmark", "cnnlab.benchmark.report.benchmark_run")
