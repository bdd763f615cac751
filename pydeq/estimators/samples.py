"""From what users pass as X, y and sample_weight to checked arrays, whole or block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils import check_array, check_consistent_length, check_X_y
from sklearn.utils.validation import validate_data

from pydeq.estimators.rows import is_sliced, mapped, read_blocks, row_bytes, spooled
from pydeq.model import RowReader, iter_blocks, read_ahead

__all__ = [
    "Samples",
    "check_range",
    "check_sample_weight",
    "check_samples",
    "check_training",
    "check_unmasked",
    "checked_blocks",
]


@dataclass(frozen=True)
class Samples:
    """Checked samples of a fit.

    Attributes
    ----------
    x : ndarray (n, n_features)
        In memory, or a memory-mapped file; of the dtype that it came in.
    weight : ndarray (n,)
    index : ndarray or None
        The samples that have weight; None: all.
    dtype : numpy.dtype
        What the model is to work in.
    y : ndarray (n,) or (n, n_outputs)
    check_y : callable or None
        Checks a part of `y` and returns it as it is to be; None: `y` is.
    """

    x: np.ndarray
    weight: np.ndarray
    index: np.ndarray | None
    dtype: np.dtype
    y: np.ndarray
    check_y: Callable[[np.ndarray], np.ndarray] | None

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield y and the weights, block by block."""
        reader, check = RowReader(self.y), self.check_y or (lambda y: y)
        for rows in iter_blocks(len(self.y), row_bytes(self.y)):
            yield check(reader(rows)), self.weight[rows]

    def counted(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield y and the weights of the samples that have weight, block by block."""
        for y, weight in self._blocks():
            counts = weight > 0
            if counts.all():
                yield y, weight
            elif counts.any():
                yield y[counts], weight[counts]

    def target(self, encode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return `encode` of y; of samples without weight, whose y may be anything, of another's.

        It is a memory-mapped file where `x` is one.
        """
        stand_in = next(self.counted())[0][:1]

        def parts() -> Iterator[np.ndarray]:
            for y, weight in self._blocks():
                left_out = weight == 0
                if left_out.any():
                    y = y.copy()
                    y[left_out] = stand_in
                yield encode(y)

        return spooled(parts(), len(self.y)) if self.check_y else np.concatenate([*parts()])


def check_training(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    y_checks: dict[str, Any],
    dtype: np.dtype | None,
) -> Samples:
    """Return the samples of a fit.

    Parameters
    ----------
    estimator : AbstractDEQEstimator
        Learns the names and the number of features if `dtype` is None.
    X, y, sample_weight : array-like
    y_checks : dict
        What scikit-learn's ``check_X_y`` is told of y.
    dtype : numpy.dtype or None
        Of a model that is gone on with; None: that of X decides.
    """
    check_unmasked(X, "X")
    check_unmasked(y, "y")
    reset = dtype is None
    check_y: Callable[[np.ndarray], np.ndarray] | None = None
    if is_sliced(X):
        _check_form(estimator, X, y, reset)
        check_y = partial(_checked_y, estimator, y_checks)
        y = mapped(y) if is_sliced(y) else np.asarray(y)
        check_consistent_length(X, y)
        X = mapped(X)
        dtype = dtype or _working_dtype(X)
        reader, reader_y = RowReader(X), RowReader(y)
        for rows in iter_blocks(len(X), row_bytes(X)):
            x, _ = _checked_pair(estimator, reader(rows), reader_y(rows), y_checks)
            check_range(x, dtype)
    else:
        X, y = validate_data(estimator, X, y, reset=reset, dtype="numeric", **y_checks)
        dtype = dtype or _working_dtype(X)
        check_range(X, dtype)
    weight = check_sample_weight(sample_weight, len(X), dtype)
    index = None if (weight > 0).all() else np.flatnonzero(weight)
    return Samples(X, weight, index, dtype, y, check_y)


def _working_dtype(X: np.ndarray) -> np.dtype:
    return np.dtype("f4" if X.dtype == np.float32 else "f8")


def _checked_pair(
    estimator: Any, x: np.ndarray, y: np.ndarray, y_checks: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    pair: Any = check_X_y(x, y, dtype="numeric", estimator=estimator, **y_checks)
    return pair


def _checked_y(estimator: Any, y_checks: dict[str, Any], y: np.ndarray) -> np.ndarray:
    return _checked_pair(estimator, np.zeros((len(y), 1)), y, y_checks)[1]


def _check_form(estimator: Any, X: Any, y: Any, reset: bool) -> None:
    """Check all of an array that is read in pieces but its values."""
    check_array(np.asarray(X[:1]), dtype="numeric", input_name="X", estimator=estimator)
    validate_data(estimator, X, y, reset=reset, skip_check_array=True)


def check_samples(estimator: Any, X: Any, dtype: np.dtype) -> Any:
    """Return the samples of a prediction; the values of what is read in pieces are yet to check."""
    check_unmasked(X, "X")
    if is_sliced(X):
        _check_form(estimator, X, "no_validation", False)
        return X
    samples: Any = validate_data(estimator, X, reset=False, dtype="numeric")
    check_range(samples, dtype)
    return samples


def checked_blocks(
    estimator: Any, X: Any, dtype: np.dtype, width: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows and samples of what `check_samples` returned, in `dtype` and C order.

    What is read in pieces is read ahead, and each piece is checked. `width` is the number of values
    that come back for a sample: the answers for a block are of bounded size, as the block is.
    """
    n_bytes = max(X.shape[1], width) * dtype.itemsize
    blocks = iter_blocks(X.shape[0], n_bytes)
    if not is_sliced(X):
        yield from ((rows, np.asarray(X[rows], dtype, order="C")) for rows in blocks)
        return

    def checked() -> Iterator[np.ndarray]:
        for x in read_blocks(X, n_bytes):
            check_array(x, dtype="numeric", input_name="X", estimator=estimator)
            check_range(x, dtype)
            yield np.asarray(x, dtype, order="C")

    yield from zip(blocks, read_ahead(checked()), strict=True)


def check_sample_weight(sample_weight: Any, n_samples: int, dtype: Any) -> np.ndarray:
    """Return the weight of every sample, ``(n_samples,)``: finite, none negative, not all zero.

    Weights whose sum or largest square `dtype` cannot hold, or that are too small for it, are
    divided by their mean: the loss is a weighted mean.
    """
    if sample_weight is None:
        return np.broadcast_to(np.ones((), dtype), n_samples)
    check_unmasked(sample_weight, "sample_weight")
    weight = check_array(
        sample_weight, ensure_2d=False, dtype="float64", order="C", input_name="sample_weight"
    )
    if weight.shape != (n_samples,):
        raise ValueError(
            f"sample_weight must have one weight for each of the {n_samples} samples, shape "
            f"({n_samples},); got shape {weight.shape}."
        )
    if (weight < 0).any():
        raise ValueError(f"sample_weight must not be negative; its smallest is {weight.min():g}.")
    if not weight.any():
        raise ValueError("sample_weight must be above zero for at least one sample.")
    if not _EVEN[0] <= weight[weight > 0].mean() <= _EVEN[1]:
        weight = weight / weight.max()
        weight /= weight[weight > 0].mean()
    return weight.astype(dtype)


_EVEN = (1e-6, 1e6)
"""Between these a mean weight leaves room for products and sums in every dtype."""


def check_unmasked(values: Any, name: str) -> None:
    """Raise ValueError where `values`, or parts of it, are masked: numpy would read through."""
    parts = values if isinstance(values, list | tuple) else [values]
    if any(np.ma.isMaskedArray(part) and np.ma.getmaskarray(part).any() for part in parts):
        raise ValueError(
            f"{name} has masked values, and every value is needed; got a masked array. Fill them, "
            "or leave their samples out."
        )


def check_range(X: np.ndarray, dtype: np.dtype) -> None:
    """Raise ValueError where X is no array of real numbers that `dtype` can hold.

    An array that is not wider is not looked at: its values were found finite.
    """
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X must have real numbers; got dtype {X.dtype}.")
    if X.dtype.kind == "f" and X.dtype.itemsize > dtype.itemsize:
        largest = max(-X.min(), X.max())
        if largest > np.finfo(dtype).max:
            raise ValueError(f"Input X contains infinity or a value too large for {dtype!r}.")
