"""Save an estimator to a file, and load it without running anything from the file.

The file is in the safetensors format: the weights are ``params/<name>``, the optimiser's state is
``optimizer/<name>``, and the header's metadata has one entry, ``pydeq``, a JSON object with the
rest. A ``random_state`` that is not an integer is saved as None.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from pydeq.errors import ModelFileError
from pydeq.model import ModelSpec, Params, check_params
from pydeq.training import History

if TYPE_CHECKING:
    from pydeq.estimators.base import AbstractDEQEstimator
    from pydeq.estimators.classifier import DEQClassifier
    from pydeq.estimators.regressor import DEQRegressor

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1
"""Version of the file format; a file of a newer one is refused."""


def save(estimator: "AbstractDEQEstimator", path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to `path`; see :meth:`AbstractDEQEstimator.save`."""
    tensors = {f"params/{name}": value for name, value in estimator.params_.items()}
    for name, value in estimator.optimizer_state_.items():
        tensors[f"optimizer/{name}"] = value
    header = json.dumps(_header(estimator))
    contiguous = {name: np.array(value, order="C") for name, value in tensors.items()}
    _write_atomically(Path(path), to_bytes(contiguous, {"pydeq": header}))


def load(path: str | os.PathLike[str]) -> "DEQRegressor | DEQClassifier":
    """Return the fitted estimator that its ``save`` wrote.

    Parameters
    ----------
    path : str or path-like

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
    path = Path(path)
    header, params, optimizer_state = _read(path)
    try:
        return _restore(header, params, optimizer_state)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"its header or weights are not what it should have ({error!r})"
        raise _not_a_model(path, reason) from error


def _header(estimator: "AbstractDEQEstimator") -> dict[str, Any]:
    from pydeq import __version__

    parameters = estimator.get_params(deep=False)
    if not isinstance(parameters["random_state"], int | np.integer):
        parameters["random_state"] = None
    header = {
        "format": FORMAT,
        "pydeq": __version__,
        "numpy": np.__version__,
        "class": type(estimator).__name__,
        "parameters": {name: _plain(name, value) for name, value in parameters.items()},
        "model": dataclasses.asdict(estimator.model_spec_),
        "history": json.loads(estimator.history_.to_json()),
        "engine": estimator.engine_,
        "rng": estimator._rng.bit_generator.state,
        "seed": estimator._seed,
        "single_target": getattr(estimator, "_single_target", None),
    }
    classes = getattr(estimator, "classes_", None)
    header["classes"] = None if classes is None else _labels_to_json(classes)
    names = getattr(estimator, "feature_names_in_", None)
    header["feature_names"] = None if names is None else names.tolist()
    return header


def _restore(header: Mapping[str, Any], params: Params, optimizer_state: Params) -> Any:
    """Return the estimator; whatever is wrong with the file shows as an ordinary exception."""
    from pydeq.estimators.classifier import DEQClassifier
    from pydeq.estimators.regressor import DEQRegressor

    classes = {"DEQRegressor": DEQRegressor, "DEQClassifier": DEQClassifier}
    parameters = {name: _tuple(value) for name, value in header["parameters"].items()}
    estimator: Any = classes[header["class"]](**parameters)
    model = {name: _tuple(value) for name, value in header["model"].items()}
    estimator.model_spec_ = ModelSpec(**model)
    check_params(estimator.model_spec_, params)
    if {value.dtype for value in params.values()} not in ({np.dtype("f4")}, {np.dtype("f8")}):
        raise ValueError("weights must all be float32 or all float64")
    estimator.params_ = params
    estimator.optimizer_state_ = optimizer_state
    estimator.n_features_in_ = estimator.model_spec_.n_features
    estimator.history_ = History.from_json(json.dumps(header["history"]))
    estimator.engine_ = header["engine"]
    estimator._rng = np.random.default_rng()
    estimator._rng.bit_generator.state = header["rng"]
    estimator._seed = header["seed"]
    if isinstance(estimator, DEQClassifier):
        estimator.classes_ = _labels_from_json(header["classes"])
    else:
        estimator._single_target = header["single_target"]
    if header["feature_names"] is not None:
        estimator.feature_names_in_ = np.array(header["feature_names"], dtype=object)
    return estimator


def _read(path: Path) -> tuple[dict[str, Any], Params, Params]:
    """Return the header, the weights and the optimiser's state of a file that is a model."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _not_a_model(path, f"it is not a whole safetensors file ({error})") from error
    try:
        header = json.loads(metadata["pydeq"])
        version = header["format"]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise _not_a_model(path, "its header has no description of a pydeq model") from error
    if version != FORMAT:
        from pydeq import __version__

        raise ModelFileError(
            f"{path} was written by pydeq {header.get('pydeq', '(unknown)')} in format "
            f"{version!r}; pydeq {__version__} reads format {FORMAT}. Load it with a newer pydeq."
        )
    return header, _group(tensors, "params/"), _group(tensors, "optimizer/")


def _group(tensors: Params, prefix: str) -> Params:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _not_a_model(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path} cannot be loaded: {reason}. A file written by save() of a pydeq estimator, "
        "complete and unchanged, is needed."
    )


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one step; a failure leaves what was there, and nothing else."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(name: str, value: Any) -> Any:
    """Return a parameter's value as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name}={value!r} cannot be saved: it is not a value that fit accepts.")


def _tuple(value: Any) -> Any:
    """Return a list as a tuple, which is what a frozen spec and a parameter's default are."""
    return tuple(value) if isinstance(value, list) else value


def _labels_to_json(classes: np.ndarray) -> dict[str, Any]:
    values = classes.tolist()
    if classes.dtype.kind not in "biufU" and not all(isinstance(v, str) for v in values):
        raise ValueError(
            f"classes_ of dtype {classes.dtype} cannot be saved; labels must be numbers, booleans "
            "or strings."
        )
    return {"dtype": classes.dtype.str, "values": values}


def _labels_from_json(labels: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(labels["dtype"])
    if dtype.kind not in "biufUO":
        raise ValueError(f"labels cannot be of dtype {dtype}")
    return np.array(labels["values"], dtype=dtype)
