"""Exceptions and warnings that pydeq raises.

Bad values of parameters and bad data raise ``ValueError`` (scikit-learn's convention); the classes
here are for what has no name in scikit-learn.
"""

import sklearn.exceptions

__all__ = ["ConvergenceWarning", "EngineError", "EngineUnavailableError", "ModelFileError"]


class ConvergenceWarning(sklearn.exceptions.ConvergenceWarning):
    """Some answers are not equilibria: their residual is above the tolerance asked for."""


class EngineError(RuntimeError):
    """An engine failed while it worked; the message says in which call."""


class EngineUnavailableError(EngineError):
    """The engine or device asked for cannot be used here; the message says why and what to do."""


class ModelFileError(ValueError):
    """A file is not a pydeq model, is damaged, or was written by a newer pydeq."""
