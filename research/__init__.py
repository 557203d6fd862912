"""What the papers and pages need and the package does not: benchmarks of explanations, renderers and speed."""

from pathlib import Path

CONF = Path(__file__).parent / "conf"
TEMPLATES = Path(__file__).parent / "templates"
