"""Research for the papers and pages: benchmarks of explanations, renderers and speed. Not in the wheel."""

from pathlib import Path

CONF = Path(__file__).parent / "conf"
TEMPLATES = Path(__file__).parent / "templates"
