"""Make ``julia_reference.npz``: what the Julia engine gives for the cases of ``parity.py``.

    python tests/data/make_julia_reference.py

The file says which versions made it.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import parity  # noqa: E402

import pydeq  # noqa: E402
from pydeq.engines import get_engine  # noqa: E402
from pydeq.engines.julia.runtime import versions  # noqa: E402


def main():
    """Solve and train everything, write the file."""
    engine = get_engine("julia", "cpu")
    results = {}
    for name in parity.CASES:
        print(name, flush=True)
        results |= {f"{name}/{key}": value for key, value in parity.solve(engine, name).items()}
    results["loss curve"], _ = parity.train(engine)
    made_by = {
        "command": "python tests/data/make_julia_reference.py",
        "versions": {**versions(), "pydeq": pydeq.__version__},
    }
    results["made by"] = np.array(json.dumps(made_by))
    path = HERE / "julia_reference.npz"
    np.savez_compressed(path, **results)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
