"""What a model file keeps of an estimator: from a fitted one to a header and arrays, and back.

The weights are ``params/<name>``, the optimiser's state is ``optimizer/<name>``, the header has the
rest. A ``random_state`` that is not an integer is kept as None.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeq.model import ModelSpec, Params, check_params
from pydeq.training import History

__all__ = ["describe", "restore"]


def describe(estimator: Any) -> tuple[dict[str, Any], Params]:
    """Return a fitted estimator as a header that JSON can hold, and named arrays."""
    from pydeq import __version__

    parameters = estimator.get_params(deep=False)
    if not isinstance(parameters["random_state"], int | np.integer):
        parameters["random_state"] = None
    header = {
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
    arrays = {f"params/{name}": value for name, value in estimator.params_.items()}
    for name, value in estimator.optimizer_state_.items():
        arrays[f"optimizer/{name}"] = value
    return header, arrays


def restore(classes: Mapping[str, type], header: Mapping[str, Any], arrays: Params) -> Any:
    """Return the estimator, of one of `classes`, that `describe` described.

    Whatever is wrong with the description shows as an ordinary exception.
    """
    params, optimizer_state = _group(arrays, "params/"), _group(arrays, "optimizer/")
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
    if header["class"] == "DEQClassifier":
        estimator.classes_ = _labels_from_json(header["classes"])
    else:
        estimator._single_target = header["single_target"]
    if header["feature_names"] is not None:
        estimator.feature_names_in_ = np.array(header["feature_names"], dtype=object)
    return estimator


def _group(tensors: Params, prefix: str) -> Params:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


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
