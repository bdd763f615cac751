"""What pydeq 0.1 wrote to model files, and how today's estimators read it.

Parameters that are gone are left out where the model predicts the same without them.
"""

from typing import Any

__all__ = ["modernised"]

_GONE = (
    "loss",
    "monotonicity",
    "ode_abstol",
    "ode_reltol",
    "optimizer",
    "reuse_equilibria",
)


def modernised(
    parameters: dict[str, Any], model: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an estimator's parameters and its model's fields without those that are gone.

    A finite horizon was integrated to ``ode_abstol`` and ``ode_reltol``, which are ``abstol`` and
    ``reltol`` now. ``optimizer``, ``loss`` and ``reuse_equilibria`` say nothing about predictions;
    `partial_fit` goes on with Adam.

    Raises
    ------
    ValueError
        If the model's cell is one that pydeq no longer has.
    """
    monotonicity = model.get("monotonicity", 1.0)
    if model.get("stability") == "monotone" and monotonicity != 1.0:
        raise ValueError(
            f"its cell has monotonicity={monotonicity!r}, and pydeq has only 1 now; fit the model "
            "anew, or load it with pydeq 0.1.0"
        )
    kept = {name: value for name, value in parameters.items() if name not in _GONE}
    if model.get("horizon") is not None:
        for name in ("abstol", "reltol"):
            if f"ode_{name}" in parameters:
                kept[name] = parameters[f"ode_{name}"]
    return kept, {name: value for name, value in model.items() if name != "monotonicity"}
