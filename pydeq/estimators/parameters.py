"""Every check of a parameter's value: from an estimator's parameters to the specs of an engine.

All errors are ValueError and say which parameter, what was needed and what came. A combination of
parameters that cannot work is refused here too, before anything is computed.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pydeq.engines import DEVICES, ENGINES
from pydeq.estimators.architecture import with_layers
from pydeq.model import (
    ACTIVATIONS,
    ADJOINTS,
    ODE_METHODS,
    SOLVERS,
    STABILITIES,
    Loss,
    ModelSpec,
    OptimizerSpec,
    Solver,
    SolverSpec,
    TrainSpec,
)

__all__ = [
    "FitSpecs",
    "check_checkpoint",
    "check_depth",
    "check_engine",
    "check_flag",
    "check_same_model",
    "fit_specs",
    "model_spec",
    "one_epoch",
    "optimizer_spec",
    "solver_spec",
    "train_spec",
]

Parameters = Mapping[str, Any]

# What a number has to be, in words and as a test.
_NOT_NEGATIVE = ("a finite number of at least 0", lambda value: value >= 0)
_POSITIVE = ("a finite number above 0", lambda value: value > 0)
_FRACTION = ("a number above 0 and below 1", lambda value: 0 < value < 1)


_INT32 = 2**31 - 1
"""The largest integer that every engine can count to."""


class FitSpecs(NamedTuple):
    """What a fit is to do; the optimiser's seed is yet to be set."""

    model: ModelSpec
    solver: SolverSpec
    optimizer: OptimizerSpec
    training: TrainSpec
    verbose: bool

    def going_on(self, n_epochs: int | None) -> "FitSpecs":
        """Return what to do after so many epochs of one long fit; None: after a whole fit."""
        before = self.training.fixed_depth_epochs
        after = 0 if n_epochs is None else max(0, before - n_epochs)
        return self._replace(
            solver=dataclasses.replace(self.solver, fixed_depth_epochs=after),
            training=dataclasses.replace(self.training, fixed_depth_epochs=after),
        )


def fit_specs(
    params: Parameters,
    loss: Loss,
    n_samples: int,
    n_features: int,
    n_outputs: int,
) -> FitSpecs:
    """Return all specs of a fit that minimises `loss`."""
    model = model_spec(params, n_features, n_outputs)
    return FitSpecs(
        model,
        solver_spec(params, model),
        optimizer_spec(params, loss),
        train_spec(params, n_samples),
        _verbose(params),
    )


def model_spec(params: Parameters, n_features: int, n_outputs: int) -> ModelSpec:
    """Return the mathematics that `params`, an estimator's parameters, ask for."""
    n_state = params["n_state"]
    if n_state is not None:
        n_state = _integer(params, "n_state", 1, or_else="None")
    elif n_features != n_outputs and not _has_ends(params):
        raise ValueError(
            "n_state=None makes the input itself the state, so input and output must be equally "
            f"wide; X has {n_features} feature(s) and the output needs {n_outputs} column(s). "
            "Pass an integer instead, for example n_state=100."
        )
    horizon = params["horizon"]
    hidden_layer_sizes = _layer_sizes(params["hidden_layer_sizes"])
    stability = _choice(params, "stability", STABILITIES)
    if stability == "monotone" and hidden_layer_sizes and params.get("cell") is None:
        raise ValueError(
            "stability='monotone' is a cell of a single layer, which needs hidden_layer_sizes=(); "
            f"got {params['hidden_layer_sizes']!r}."
        )
    model = ModelSpec(
        n_features=n_features,
        n_outputs=n_outputs,
        n_state=n_state,
        hidden_layer_sizes=hidden_layer_sizes,
        activation=_choice(params, "activation", ACTIVATIONS),
        stability=stability,
        contraction=_number(params, "contraction", _FRACTION),
        horizon=None if horizon is None else _number(params, "horizon", _POSITIVE, or_else="None"),
    )
    return with_layers(params, model)


def _has_ends(params: Parameters) -> bool:
    return params.get("encoder") is not None or params.get("decoder") is not None


def solver_spec(params: Parameters, model: ModelSpec) -> SolverSpec:
    """Return how the equilibria of `model` are to be found."""
    name = _choice(params, "solver", ("auto", *SOLVERS, *ODE_METHODS))
    spec = SolverSpec(
        name=_quickest_solver(model) if name == "auto" else name,
        abstol=_number(params, "abstol", _NOT_NEGATIVE),
        reltol=_number(params, "reltol", _NOT_NEGATIVE),
        max_steps=_integer(params, "max_steps", 1),
        adjoint=_choice(params, "adjoint", ADJOINTS),
        fixed_depth=_fixed_depth(params),
        fixed_depth_epochs=_fixed_depth_epochs(params),
    )
    if spec.abstol == spec.reltol == 0:
        raise ValueError(
            "abstol=0 together with reltol=0 is a tolerance that no answer meets; "
            "at least one of them must be above 0."
        )
    _check_solver_fits(spec, model)
    return spec


def _fixed_depth(params: Parameters) -> int | None:
    if params["fixed_depth"] is None:
        return None
    return _integer(params, "fixed_depth", 1, or_else="None")


def _fixed_depth_epochs(params: Parameters) -> int:
    n_epochs = _integer(params, "fixed_depth_epochs", 1)
    return 0 if params["fixed_depth"] is None else n_epochs


def _quickest_solver(model: ModelSpec) -> Solver:
    """Return the solver of least evaluations among those that must find the model's state.

    Of a cell without a guarantee, another solver may find another equilibrium than the ODE does.
    """
    if model.horizon is None and model.stability == "contractive":
        return "anderson"
    if model.horizon is None and model.stability == "monotone":
        return "peaceman_rachford"
    return "tsit5"


def _check_solver_fits(spec: SolverSpec, model: ModelSpec) -> None:
    if model.horizon is not None and spec.name not in ("tsit5", *ODE_METHODS):
        raise ValueError(
            f"horizon={model.horizon:g} integrates an ODE, which needs solver='tsit5'; got "
            f"solver={spec.name!r}. (The Julia engine also has {', '.join(ODE_METHODS)}.) With "
            "horizon=None the model is solved for its equilibrium, by any solver."
        )
    if model.horizon is not None and spec.fixed_depth is not None:
        raise ValueError(
            f"fixed_depth={spec.fixed_depth} stands in for the search of an equilibrium, and "
            f"horizon={model.horizon:g} searches none; set one of them to None."
        )
    if spec.name == "peaceman_rachford" and model.stability != "monotone":
        raise ValueError(
            "solver='peaceman_rachford' splits the monotone cell, which needs "
            f"stability='monotone'; got stability={model.stability!r}. solver='auto' takes one "
            "that fits."
        )
    is_pr = spec.name == "peaceman_rachford"
    if spec.adjoint == "unrolled" and is_pr and _has_inner_solves(model):
        raise ValueError(
            "adjoint='unrolled' does not work with solver='peaceman_rachford' for a convolution "
            "padded with zeros, whose inner linear solves cannot be differentiated; use "
            "adjoint='implicit', or padding='circular'."
        )
    if spec.adjoint == "unrolled" and spec.name == "newton":
        raise ValueError(
            "adjoint='unrolled' does not work with solver='newton', whose inner linear solves "
            "cannot be differentiated; use adjoint='implicit', or another solver."
        )
    if spec.adjoint == "unrolled" and model.horizon is None and spec.name in ODE_METHODS:
        raise ValueError(
            f"adjoint='unrolled' does not work with solver={spec.name!r}, whose steps are not "
            "differentiated; use adjoint='implicit', or solver='tsit5'."
        )


def _has_inner_solves(model: ModelSpec) -> bool:
    first = model.network.cell[0].layer if model.network.cell else None
    return getattr(first, "padding", "circular") == "zero"


def optimizer_spec(params: Parameters, loss: Loss) -> OptimizerSpec:
    """Return how `loss` is minimised."""
    return OptimizerSpec(
        loss=loss,
        learning_rate=_number(params, "learning_rate_init", _POSITIVE),
        alpha=_number(params, "alpha", _NOT_NEGATIVE),
        jacobian_penalty=_number(params, "jacobian_penalty", _NOT_NEGATIVE),
        init_penalty=_number(params, "init_penalty", _NOT_NEGATIVE),
        train_encoder=check_flag(params, "train_encoder"),
    )


def train_spec(params: Parameters, n_samples: int) -> TrainSpec:
    """Return how the epochs run over `n_samples` training samples."""
    max_iter = _integer(params, "max_iter", 1)
    patience = params["n_iter_no_change"]
    if _is_number(patience) and patience == math.inf:
        patience = max_iter  # as many epochs without improvement as there can be
    else:
        patience = _integer(params, "n_iter_no_change", 1, or_else="inf")
    if isinstance(params["batch_size"], str) and params["batch_size"] == "auto":
        batch_size = 200
    else:
        batch_size = _integer(params, "batch_size", 1, or_else="'auto'")
    return TrainSpec(
        batch_size=min(batch_size, n_samples),
        max_iter=max_iter,
        shuffle=check_flag(params, "shuffle"),
        tol=_number(params, "tol", _NOT_NEGATIVE),
        n_iter_no_change=patience,
        average=check_flag(params, "average"),
        early_stopping=check_flag(params, "early_stopping"),
        validation_fraction=_number(params, "validation_fraction", _FRACTION),
        fixed_depth_epochs=_fixed_depth_epochs(params),
    )


def one_epoch(training: TrainSpec) -> TrainSpec:
    """Return the epoch loop of a call of `partial_fit`."""
    if training.early_stopping:
        raise ValueError(
            "partial_fit does not support early_stopping=True: it sees one part of the data a "
            "call, and holds none of it out."
        )
    return dataclasses.replace(training, max_iter=1)


def check_engine(params: Parameters) -> tuple[str, str]:
    """Return the names of the engine and the device asked for."""
    return _choice(params, "engine", ENGINES), _choice(params, "device", DEVICES)


def check_flag(params: Parameters, name: str) -> bool:
    """Return a parameter that is True or False (numpy's included)."""
    value = params[name]
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {value!r}.")
    return bool(value)


def check_checkpoint(values: Parameters) -> None:
    """Check the fields of a :class:`pydeq.Checkpoint`."""
    if not isinstance(values["folder"], str | bytes | os.PathLike):
        raise ValueError(
            "checkpoint must be a folder's path or a pydeq.Checkpoint; got "
            f"{type(values['folder']).__name__}."
        )
    if values["every_epochs"] is not None:
        _integer(values, "every_epochs", 1, or_else="None")
    if values["every_minutes"] is not None:
        _number(values, "every_minutes", _NOT_NEGATIVE, or_else="None")
    _integer(values, "keep", 1)


def check_depth(depth: Any) -> int:
    """Return the number of iterates after the start, an integer of at least 0."""
    return _integer({"depth": depth}, "depth", 0)


def check_same_model(fitted: ModelSpec, asked: ModelSpec, action: str) -> None:
    """Raise ValueError where `action` would go on from the weights of a different model."""
    changes = [
        f"{field.name} was {before!r} and is now {after!r}"
        for field in dataclasses.fields(ModelSpec)
        if (before := getattr(fitted, field.name)) != (after := getattr(asked, field.name))
    ]
    if changes:
        raise ValueError(
            f"{action} goes on from the fitted weights, which needs the model they belong to; "
            f"{'; '.join(changes)}. Fit a new estimator, or set the value back."
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _choice(params: Parameters, name: str, choices: tuple[str, ...]) -> Any:
    value = params[name]
    # A list or an array has no place in a comparison with names.
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        needed = f"one of {listed}" if len(choices) > 1 else listed
        raise ValueError(f"{name} must be {needed}; got {value!r}.")
    return str(value)


def _integer(params: Parameters, name: str, minimum: int, or_else: str = "") -> int:
    value = params[name]
    if not _is_integer(value) or value < minimum or value > _INT32:
        alternative = f", or {or_else}" if or_else else ""
        raise ValueError(
            f"{name} must be an integer of at least {minimum} and at most 2**31 - 1{alternative}; "
            f"got {_shown(value)}."
        )
    return int(value)


def _number(
    params: Parameters,
    name: str,
    needed: tuple[str, Callable[[float], bool]],
    or_else: str = "",
) -> float:
    words, holds = needed
    value = _float(params[name])
    if not math.isfinite(value) or not holds(value):
        alternative = f", or {or_else}" if or_else else ""
        raise ValueError(f"{name} must be {words}{alternative}; got {_shown(params[name])}.")
    return value


def _float(value: Any) -> float:
    """Return a number as a float; NaN for what is none, inf beyond the range of floats."""
    if not _is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    """Return a value as it was given, cut short where it is an endless number."""
    if _is_integer(value) and abs(value) > 10**30:
        return f"an integer of {int(value).bit_length()} bits"
    return repr(value)


def _verbose(params: Parameters) -> bool:
    """Return whether to show progress; scikit-learn's levels 0, 1, 2, ... are accepted too."""
    value = params["verbose"]
    if not isinstance(value, bool | np.bool_) and not (_is_integer(value) and value >= 0):
        raise ValueError(f"verbose must be True, False or an integer of at least 0; got {value!r}.")
    return bool(value)


def _layer_sizes(value: Any) -> tuple[int, ...]:
    sizes = value.tolist() if isinstance(value, np.ndarray) else value
    if _is_integer(sizes):
        sizes = (sizes,)
    if not isinstance(sizes, list | tuple) or not all(_is_integer(n) and n >= 1 for n in sizes):
        raise ValueError(
            "hidden_layer_sizes must be an integer of at least 1, or a sequence of them, such as "
            f"(100,) or () for a cell without hidden layers; got {value!r}."
        )
    return tuple(int(size) for size in sizes)
