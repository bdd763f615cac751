"""The contestants: one line each."""

from dataclasses import dataclass, field
from typing import Any

from pydeq import presets

__all__ = ["OURS", "PRESET", "ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One configuration of one program.

    Attributes
    ----------
    name : str
    family : str
        Whose it is: ``pydeq``, ``torchdeq``, ``optimistix``, ``torch``, ``julia`` or ``preset``.
    worker : str
        Module of this package that runs it, or a Julia script beside `peers.py`.
    settings : dict
        What the worker makes of it is said there.
    default : bool
        Whether it runs when no name is given.
    same_model : bool
        Whether it has the common cell, batch size and learning rate; the others are for orientation
        and enter no bar on time.
    """

    name: str
    family: str
    worker: str
    settings: dict[str, Any] = field(default_factory=dict)
    default: bool = True
    same_model: bool = True


def _pydeq(name: str, default: bool = True, **settings: Any) -> Row:
    return Row(name, "pydeq", "pydeq_session", settings, default)


def _torchdeq(name: str, default: bool = True, **settings: Any) -> Row:
    return Row(name, "torchdeq", "torchdeq_peer", settings, default)


# torchdeq's spectral normalisation as a bound: each layer is scaled to sqrt(0.9) where it is above.
_BOUNDED = {
    "norm_type": "spectral_norm",
    "norm_no_scale": True,
    "norm_target_norm": 0.9**0.5,
    "norm_clip": True,
    "norm_clip_value": 1.0,
}
_ANDERSON = {"lam": 1e-6}
_PRESET = {
    name: value
    for name, value in presets.mnist(abstol=1e-3).get_params().items()
    if name in ("stability", "solver", "abstol", "learning_rate_init")
}
"""The preset's, where they are not those of the common cell."""

OURS = "pydeq"
"""The row that the bars are about: pydeq's defaults on the common cell."""

PRESET = ("preset mnist, jax", "preset mnist, julia")

ROWS = (
    _pydeq(OURS),
    _pydeq("pydeq anderson", solver="anderson"),
    _pydeq("pydeq broyden", solver="broyden"),
    _pydeq("pydeq newton", solver="newton"),
    _pydeq("pydeq fixed_point", solver="fixed_point"),
    _pydeq("pydeq tsit5", solver="tsit5"),
    _pydeq("pydeq jfb", adjoint="jfb"),
    _pydeq("pydeq jacobian", stability="jacobian", solver="anderson"),
    _pydeq("pydeq jacobian jfb", stability="jacobian", solver="anderson", adjoint="jfb"),
    _pydeq(
        "pydeq jacobian jfb, averaged",
        stability="jacobian",
        solver="anderson",
        adjoint="jfb",
        average=True,
    ),
    _pydeq("pydeq none", stability="none", solver="anderson"),
    _torchdeq(
        "torchdeq anderson", solver="anderson", options=_ANDERSON, norm={"norm_type": "weight_norm"}
    ),
    _torchdeq(
        "torchdeq fixed_point_iter", solver="fixed_point_iter", norm={"norm_type": "weight_norm"}
    ),
    _torchdeq("torchdeq anderson, bounded", solver="anderson", options=_ANDERSON, norm=_BOUNDED),
    _torchdeq("torchdeq fixed_point_iter, bounded", solver="fixed_point_iter", norm=_BOUNDED),
    _torchdeq("torchdeq broyden, bounded", False, solver="broyden", norm=_BOUNDED),
    _torchdeq(
        "torchdeq fixed_point_iter, one-step gradient",
        solver="fixed_point_iter",
        ift=False,
        norm={"norm_type": "weight_norm"},
    ),
    _torchdeq(
        "torchdeq anderson, no norm",
        False,
        solver="anderson",
        options=_ANDERSON,
        norm={"norm_type": "none"},
    ),
    _torchdeq(
        "torchdeq fixed_point_iter, no norm",
        False,
        solver="fixed_point_iter",
        norm={"norm_type": "none"},
    ),
    Row("optimistix fixed_point", "optimistix", "optimistix_peer"),
    Row("torch unrolled", "torch", "torch_unrolled", {"max_iter": 40}),
    Row(
        "pydeq monotone",
        "pydeq",
        "pydeq_session",
        {"stability": "monotone", "hidden_layer_sizes": (), "activation": "relu"},
        same_model=False,
    ),
    Row("pydeq DEQClassifier()", "pydeq", "pydeq_session", {"defaults": True}, same_model=False),
    Row("pydeq julia", "julia", "pydeq_session", {"engine": "julia"}),
    Row("pydeq julia tsit5", "julia", "pydeq_session", {"engine": "julia", "solver": "tsit5"}),
    Row("DeepEquilibriumNetworks.jl VCAB3", "julia", "peers_deqn.jl", {"solver": "VCAB3"}),
    Row("DeepEquilibriumNetworks.jl Tsit5", "julia", "peers_deqn.jl", {"solver": "Tsit5"}),
    Row(PRESET[0], "preset", "pydeq_session", _PRESET, same_model=False),
    Row(PRESET[1], "preset", "pydeq_session", {**_PRESET, "engine": "julia"}, same_model=False),
)
