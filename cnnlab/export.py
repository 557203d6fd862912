"""python -m cnnlab.export: a trained network for use without cnnlab."""

from cnnlab.cli import command

if __name__ == "__main__":
    command("export", "cnnlab.model_export.export_run")
