"""pydeq: deep equilibrium models as scikit-learn estimators, on a Julia and on a JAX engine.

Names are imported when they are first used, so that ``import pydeq`` loads neither an engine nor
matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pydeq.errors import ConvergenceWarning, EngineError, EngineUnavailableError, ModelFileError

if TYPE_CHECKING:
    from pydeq import datasets, layers, plot, presets
    from pydeq.cell_function import CellFunction
    from pydeq.engines import julia_cell
    from pydeq.estimators import Checkpoint, DEQClassifier, DEQRegressor, load
    from pydeq.fixed_points import FixedPoint, fixed_point
    from pydeq.model import Certificates, Equilibrium
    from pydeq.training import EpochRecord, History

__version__ = "0.1.0"

__all__ = [
    "CellFunction",
    "Certificates",
    "Checkpoint",
    "ConvergenceWarning",
    "DEQClassifier",
    "DEQRegressor",
    "EngineError",
    "EngineUnavailableError",
    "EpochRecord",
    "Equilibrium",
    "FixedPoint",
    "History",
    "ModelFileError",
    "__version__",
    "datasets",
    "fixed_point",
    "julia_cell",
    "layers",
    "load",
    "plot",
    "presets",
]

_HOMES = {
    "pydeq.cell_function": ("CellFunction",),
    "pydeq.engines": ("julia_cell",),
    "pydeq.estimators": ("Checkpoint", "DEQClassifier", "DEQRegressor", "load"),
    "pydeq.fixed_points": ("FixedPoint", "fixed_point"),
    "pydeq.model": ("Certificates", "Equilibrium"),
    "pydeq.training": ("EpochRecord", "History"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("datasets", "layers", "plot", "presets")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pydeq.{name}")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pydeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
