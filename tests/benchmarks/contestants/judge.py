"""What all are judged by, in one place: accuracy, and the residual in numpy float64."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contestants.task import read_array
from pydeq.model import residual

__all__ = ["Verdict", "judge"]

_ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    "logistic": lambda v: 1 / (1 + np.exp(-v)),
    "identity": lambda v: v,
}


@dataclass(frozen=True)
class Verdict:
    """How good the predictions for the test samples are.

    Attributes
    ----------
    accuracy : float
    converged : float
        Share of the samples whose residual is at most the tolerance.
    worst : float
        Largest residual.
    """

    accuracy: float
    converged: float
    worst: float


def judge(prefix: Path, x: np.ndarray, y: np.ndarray, reltol: float) -> Verdict:
    """Judge what a contestant wrote under `prefix` for the samples `x` of classes `y`.

    The class is the decoder's at the state that was handed back, recomputed like the residual.
    """
    form, *lines = Path(f"{prefix}.form").read_text().splitlines()
    params = {}
    for line in lines:
        name, *shape = line.split()
        path = Path(f"{prefix}.{name}.f4")
        params[name] = read_array(path, tuple(map(int, shape))).astype(np.float64)
    z = read_array(Path(f"{prefix}.state.f4"), (len(x), -1)).astype(np.float64)
    h = x.astype(np.float64) @ params["encoder.weight"] + params["encoder.bias"]
    found = residual(z, _cell(form, params, z, h))
    found = np.where(np.isfinite(found), found, np.inf)
    output = z @ params["decoder.weight"] + params["decoder.bias"]
    return Verdict(
        accuracy=float((output.argmax(axis=1) == y).mean()),
        converged=float((found <= reltol).mean()),
        worst=float(found.max()),
    )


def _cell(form: str, params: dict[str, np.ndarray], z: np.ndarray, h: np.ndarray) -> np.ndarray:
    kind, activation = form.split()
    act = _ACTIVATIONS[activation]
    if kind == "monotone":
        return act(z @ params["cell.0.weight"] + h + params["cell.0.bias"])
    v = z + h
    last = sum(name.startswith("cell.") and name.endswith(".weight") for name in params) - 1
    for i in range(last + 1):
        v = v @ params[f"cell.{i}.weight"] + params[f"cell.{i}.bias"]
        v = act(v) if i < last else v
    return v
