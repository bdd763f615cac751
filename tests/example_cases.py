"""How an example is run as a script, in the test's own process and folder."""

import runpy
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name):
    """Run it, and look at the figures that it leaves in the folder ``out``."""
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    figures = list(Path("out").glob("*.png"))
    assert figures
    for path in figures:
        with Image.open(path) as picture:
            picture.verify()
