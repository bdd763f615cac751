"""From a model file to the estimator that was saved."""

import os
from collections.abc import Callable
from typing import Any

from pydeq.estimators import model_file
from pydeq.estimators.classifier import DEQClassifier
from pydeq.estimators.regressor import DEQRegressor
from pydeq.estimators.stored import needed_function, restore

__all__ = ["load"]

_CLASSES = {"DEQRegressor": DEQRegressor, "DEQClassifier": DEQClassifier}


def load(
    path: model_file.PathName, *, cell: Callable[..., Any] | str | None = None
) -> DEQRegressor | DEQClassifier:
    """Return the fitted estimator that its ``save`` wrote. No code in the file is run.

    Parameters
    ----------
    path : str or path-like
    cell : callable or str, optional
        The function, or the Julia code, of a model whose cell is a :class:`pydeq.CellFunction`: no
        file has it. It is taken as it is given; only its name and the shapes are in the file.

    Returns
    -------
    DEQRegressor or DEQClassifier
        With the dtype, and so the predictions, of the one that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is not a model of pydeq, is damaged, or was written by a newer pydeq.
    ValueError
        If the model's cell is a function and `cell` is not given, or the other way round.

    Examples
    --------
    >>> import pydeq
    >>> from pydeq import presets
    >>> model = presets.double(max_iter=5).fit(*presets.double_data())
    >>> model.save("double.safetensors")
    >>> same = pydeq.load("double.safetensors")
    >>> bool(same.predict([[-5.0]])[0] == model.predict([[-5.0]])[0])
    True
    """
    header, arrays = model_file.read(path)
    name = needed_function(header)
    if name is not None and not callable(cell) and not isinstance(cell, str):
        raise ValueError(
            f"{os.fsdecode(path)} is a model whose cell is the function {name}, which no file has. "
            f"Pass it: pydeq.load(path, cell={name}); got cell={cell!r:.100}."
        )
    if name is None and cell is not None:
        raise ValueError(
            f"cell= is for a model whose cell is a function, and that of {os.fsdecode(path)} is "
            "none; leave it out."
        )
    try:
        return restore(_CLASSES, header, arrays, cell)
    except KeyError as error:
        raise model_file.not_a_model(path, f"its header lacks {error}") from error
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = f"its header or weights are not what it should have ({error})"
        raise model_file.not_a_model(path, reason) from error
