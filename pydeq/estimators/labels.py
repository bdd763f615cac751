"""Class labels in a model file's header: numbers, truth values or strings, and how they come back.

An array's dtype may ask for more memory than the file has bytes, so it is checked before it is
made.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["labels_from_json", "labels_to_json"]

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|U[0-9]{1,9}|O8?)")
_TYPES = {"b": bool, "i": int, "u": int, "f": (float, int), "U": str, "O": str}
_PADDING = 2**20
"""Bytes that an array of strings may take beyond what its longest label needs."""


def labels_to_json(classes: np.ndarray) -> dict[str, Any]:
    """Return the labels as JSON has them; raise ValueError where it has no such labels."""
    labels = {"dtype": classes.dtype.str, "values": classes.tolist()}
    if classes.dtype.kind == "U":  # no wider than they need be
        labels["dtype"] = np.array(labels["values"]).dtype.str
    try:
        labels_from_json(labels)
    except ValueError as error:
        raise ValueError(
            f"classes_ of dtype {classes.dtype} cannot be saved; labels must be numbers, booleans "
            f"or strings ({error})."
        ) from error
    return labels


def labels_from_json(labels: Any) -> np.ndarray:
    """Return the sorted labels ``(n_classes,)``; raise ValueError where they are none."""
    if not isinstance(labels, Mapping) or labels.keys() != {"dtype", "values"}:
        raise ValueError("classes must be an object of dtype and values")
    dtype, values = labels["dtype"], labels["values"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"labels cannot be of dtype {dtype!r}")
    kind = dtype.lstrip("<>=|")[0]
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError("classes must be a list of at least two labels")
    for value in values:
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "b"):
            raise ValueError(f"a label of dtype {dtype} cannot be {value!r}")
    if kind == "U":
        spare = int(dtype.partition("U")[2]) - max(map(len, values))
        if not 0 <= 4 * spare * len(values) <= _PADDING:
            raise ValueError(f"labels of dtype {dtype} are not those of the file")
    try:
        with np.errstate(over="ignore"):
            classes = np.array(values, np.dtype("O" if kind == "O" else dtype))
    except OverflowError as error:
        raise ValueError(f"a label does not fit dtype {dtype}") from error
    if classes.tolist() != values:
        raise ValueError(f"labels are not what dtype {dtype} can hold")
    if not np.array_equal(np.unique(classes), classes):
        raise ValueError("labels must be distinct and sorted")
    return classes
