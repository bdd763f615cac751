"""What a model file keeps of an estimator: from a fitted one to a header and arrays, and back.

The weights are ``params/<name>``, the optimiser's state is ``optimizer/<name>``, the header has the
rest. A ``random_state`` that is not an integer is kept as None. What comes back is checked by the
rules that `fit` has, and so is what goes out: a file that was written can be read.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from pydeq.cell_function import CellFunction
from pydeq.estimators import parameters
from pydeq.estimators.architecture import ARCHITECTURE
from pydeq.estimators.labels import labels_from_json, labels_to_json
from pydeq.estimators.layer_json import layer_from_json, layer_to_json
from pydeq.estimators.legacy import modernised
from pydeq.layers import Layer
from pydeq.model import ModelSpec, Params, check_params, parameter_shapes
from pydeq.training import History

__all__ = ["describe", "plain_parameters", "restore"]

_SCALE = {"target_mean": 0.0, "target_scale": 1.0}
"""A regressor's scale of the target; in files that do not name it y was learned as it is."""

_LATER = {**ARCHITECTURE, "init_penalty": 1.0, "fixed_depth": None, "fixed_depth_epochs": 1}
"""Parameters that came after the format, with their defaults, at which no file names them."""

_MODEL_FIELDS = [field.name for field in dataclasses.fields(ModelSpec)]


def describe(estimator: Any) -> tuple[dict[str, Any], Params]:
    """Return a fitted estimator as a header that JSON can hold, and named arrays.

    Raises
    ------
    ValueError
        If a parameter is none that `fit` accepts.
    """
    from pydeq import __version__

    values = estimator.get_params(deep=False)
    if not isinstance(values["random_state"], int | np.integer):
        values["random_state"] = None
    own = estimator.model_spec_.cell
    if isinstance(own, CellFunction):
        values["cell"] = own  # no file holds code
    classes = getattr(estimator, "classes_", None)
    names = getattr(estimator, "feature_names_in_", None)
    header = {
        "pydeq": __version__,
        "numpy": np.__version__,
        "class": type(estimator).__name__,
        "parameters": plain_parameters(values),
        "model": _model_fields(estimator.model_spec_),
        "history": dataclasses.asdict(estimator.history_),
        "engine": estimator.engine_,
        "rng": estimator._rng.bit_generator.state,
        "seed": estimator._seed,
        "single_target": getattr(estimator, "_single_target", None),
        **{name: _listed(getattr(estimator, f"{name}_", None)) for name in _SCALE},
        "classes": None if classes is None else labels_to_json(classes),
        "feature_names": None if names is None else names.tolist(),
    }
    _check_parameters(estimator, estimator.model_spec_)
    arrays = {f"params/{name}": value for name, value in estimator.params_.items()}
    for name, value in estimator.optimizer_state_.items():
        arrays[f"optimizer/{name}"] = value
    if isinstance(own, CellFunction):
        for name, value in own.params.items():
            arrays[f"start/{name}"] = np.float64(value)
    return header, arrays


def needed_function(header: Mapping[str, Any]) -> str | None:
    """Return the name of the function that is the cell of what `describe` described, if one is."""
    given = header.get("parameters")
    cell = given.get("cell") if isinstance(given, dict) else None
    return str(cell["function"])[:100] if isinstance(cell, dict) and "function" in cell else None


def restore(
    kinds: Mapping[str, type],
    header: Mapping[str, Any],
    arrays: Params,
    function: Callable[..., Any] | str | None = None,
) -> Any:
    """Return the estimator, of one of `kinds`, that `describe` described.

    `function` is its cell, where that is one.

    Raises
    ------
    KeyError
        If a field of the header is not there.
    ValueError
        If a field or an array is not what a fitted estimator has.
    """
    kind = header["class"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"class must be one of {', '.join(kinds)}, not {kind!r}")
    given, model = modernised(_object(header, "parameters"), _object(header, "model"))
    estimator: Any = kinds[kind]()
    if unknown := sorted(given.keys() - estimator.get_params(deep=False).keys()):
        raise ValueError(f"{kind} has no parameter {', '.join(unknown)}")
    start = _group(arrays, "start/")
    if isinstance(given.get("cell"), str):
        raise ValueError("its cell is code, which no file of pydeq's holds; it is not run")
    if function is not None:
        given["cell"] = model["cell"] = CellFunction(function, start)
    given = with_layer_values(given)
    estimator.set_params(**{name: _tuple(value) for name, value in given.items()})
    spec = _model(model, len(arrays))
    _check_parameters(estimator, spec)
    estimator.model_spec_ = spec
    estimator.params_ = _weights(spec, _group(arrays, "params/"))
    estimator.optimizer_state_ = _optimizer_state(estimator.params_, _group(arrays, "optimizer/"))
    n_known = len(estimator.params_) + len(estimator.optimizer_state_)
    if len(arrays) != n_known + (0 if function is None else len(start)):
        raise ValueError("it has arrays that are neither weights nor the optimiser's state")
    estimator.n_features_in_ = spec.n_features
    estimator.history_ = History.from_dict(_object(header, "history"))
    estimator.engine_ = _text(header, "engine")
    estimator._rng = _generator(header["rng"])
    estimator._seed = _integer(header["seed"], 2**31, "seed")
    _set_target(estimator, kind, spec, header)
    _set_feature_names(estimator, header["feature_names"])
    for name in ("pydeq", "numpy"):
        _text(header, name)
    return estimator


def _model_fields(model: ModelSpec) -> dict[str, Any]:
    return plain_parameters({name: getattr(model, name) for name in _MODEL_FIELDS})


def _check_parameters(estimator: Any, model: ModelSpec) -> None:
    """Raise ValueError unless both a fit and a prediction can work with the parameters."""
    values = estimator.get_params(deep=False)
    parameters.fit_specs(values, estimator._loss, 1, model.n_features, model.n_outputs)
    parameters.solver_spec(values, model)
    parameters.check_engine(values)
    parameters.check_flag(values, "warm_start")
    check_random_state(values["random_state"])


def _model(fields: dict[str, Any], n_arrays: int) -> ModelSpec:
    needed = set(_MODEL_FIELDS) - ARCHITECTURE.keys()
    if not needed <= fields.keys() <= set(_MODEL_FIELDS):
        raise ValueError(f"model must have the fields {', '.join(sorted(needed))}")
    fields = with_layer_values(fields)
    sizes = fields["hidden_layer_sizes"]
    if not isinstance(sizes, list) or len(sizes) > n_arrays:
        raise ValueError("it has more hidden layers than weights")
    n_features = _integer(fields["n_features"], 2**63, "n_features", 1)
    n_outputs = _integer(fields["n_outputs"], 2**63, "n_outputs", 1)
    return parameters.model_spec(fields, n_features, n_outputs)


def _weights(model: ModelSpec, params: Params) -> Params:
    check_params(model, params)
    if {value.dtype for value in params.values()} not in ({np.dtype("f4")}, {np.dtype("f8")}):
        raise ValueError("weights must all be float32 or all float64")
    for name, value in params.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite")
    return {name: params[name] for name in parameter_shapes(model)}


def _optimizer_state(params: Params, state: Params) -> Params:
    """Return Adam's state; that of another optimiser, which 0.1 had, was empty."""
    if not state:
        return state
    expected = {f"{part}.{name}": value for part in "mv" for name, value in params.items()}
    if state.keys() != {"count", *expected}:
        raise ValueError("the optimiser's state does not have the names of the weights")
    for name, like in expected.items():
        value = state[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"the optimiser's {name} does not have the weights' shape and dtype")
        if not np.isfinite(value).all() or (name.startswith("v.") and (value < 0).any()):
            raise ValueError(f"the optimiser's {name} has values that Adam never has")
    count = state["count"]
    if count.shape != () or count.dtype != np.int64 or not 0 <= count < 2**31:
        raise ValueError("the optimiser's count must be an integer of at least 0")
    return state


def _generator(state: Any) -> np.random.Generator:
    """Return a generator in a state of PCG64's."""
    rng = np.random.default_rng()
    inner = state.get("state") if isinstance(state, dict) else None
    if not isinstance(inner, dict) or state.get("bit_generator") != "PCG64":
        raise ValueError("rng must be the state of a PCG64")
    _integer(inner["state"], 2**128, "the state of rng")
    if _integer(inner["inc"], 2**128, "inc of rng") % 2 == 0:
        raise ValueError("inc of rng must be odd")
    _integer(state["has_uint32"], 2, "has_uint32 of rng")
    _integer(state["uinteger"], 2**32, "uinteger of rng")
    rng.bit_generator.state = state
    return rng


def _set_target(estimator: Any, kind: str, model: ModelSpec, header: Mapping[str, Any]) -> None:
    classes, single = header["classes"], header["single_target"]
    if kind == "DEQClassifier":
        estimator.classes_ = labels_from_json(classes)
        if len(estimator.classes_) != model.n_outputs or single is not None:
            raise ValueError("a classifier has a label for each output")
    else:
        if not isinstance(single, bool) or classes is not None or (single and model.n_outputs > 1):
            raise ValueError("single_target of a regressor must be true or, of outputs, false")
        estimator._single_target = single
        for name, default in _SCALE.items():
            values = header.get(name, [default] * model.n_outputs)
            setattr(estimator, f"{name}_", _numbers(values, model.n_outputs, name))
        if not (estimator.target_scale_ > 0).all():
            raise ValueError("target_scale must be above 0")


def _listed(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _numbers(values: Any, n: int, what: str) -> np.ndarray:
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"{what} must have {n} numbers")
    if not all(isinstance(v, float) and np.isfinite(v) for v in values):
        raise ValueError(f"{what} must be finite numbers")
    return np.array(values)


def _set_feature_names(estimator: Any, names: Any) -> None:
    if names is None:
        return
    n_features = estimator.n_features_in_
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("feature_names must be strings")
    if len(names) != n_features:
        raise ValueError(f"it has {len(names)} feature names for {n_features} features")
    estimator.feature_names_in_ = np.array(names, dtype=object)


def _object(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(header[name], dict):
        raise ValueError(f"{name} must be an object")
    return header[name]


def _text(header: Mapping[str, Any], name: str) -> str:
    value = header[name]
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) < 100:
        raise ValueError(f"{name} must be a name")
    return value


def _integer(value: Any, end: int, what: str, start: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not start <= value < end:
        raise ValueError(f"{what} must be an integer of at least {start}, below {end:.3g}")
    return value


def _group(arrays: Params, prefix: str) -> Params:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def plain_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON has them, without those of `_LATER` that are not set."""
    return {
        name: _plain(name, value)
        for name, value in values.items()
        if name not in _LATER or type(value) is not type(_LATER[name]) or value != _LATER[name]
    }


def with_layer_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields of JSON with the layers in them as layers."""
    fields = dict(fields)
    for name in ARCHITECTURE.keys() - {"input_shape"}:
        if isinstance(value := fields.get(name), dict):
            fields[name] = layer_from_json(value)
        elif isinstance(value, list):
            fields[name] = tuple(map(layer_from_json, value))
    return fields


def _plain(name: str, value: Any) -> Any:
    """Return a parameter's value as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Layer):
        return layer_to_json(value)
    if isinstance(value, CellFunction):
        return {
            "function": value.name,
            "shapes": repr(value.shapes),
            "digest of params": value.digest,
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name}={value!r} cannot be saved: it is not a value that fit accepts.")


def _tuple(value: Any) -> Any:
    """Return a list as a tuple, which is what a parameter's default is."""
    return tuple(value) if isinstance(value, list) else value
