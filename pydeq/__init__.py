"""pydeq: deep equilibrium models as scikit-learn estimators.

Names are imported when they are first used, so that ``import pydeq`` loads neither an engine nor
matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pydeq.errors import ConvergenceWarning

# At once, not lazily: the import of the module would put it in the place of its function.
from pydeq.fixed_point import fixed_point

if TYPE_CHECKING:
    from pydeq import datasets, plot, presets
    from pydeq.classifier import DEQClassifier
    from pydeq.io import load
    from pydeq.regressor import DEQRegressor

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "DEQClassifier",
    "DEQRegressor",
    "__version__",
    "datasets",
    "fixed_point",
    "load",
    "plot",
    "presets",
]

_HOMES = {
    "DEQClassifier": "pydeq.classifier",
    "DEQRegressor": "pydeq.regressor",
    "load": "pydeq.io",
}
_MODULES = ("datasets", "plot", "presets")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pydeq.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pydeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
