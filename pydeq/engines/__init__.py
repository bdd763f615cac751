"""The engines by name. Asking for one imports it; importing this module imports none."""

import functools
import logging
import sys
import threading
from dataclasses import dataclass
from typing import Literal, get_args

from pydeq.cell_function import CellFunction
from pydeq.engines.base import (
    AbstractEngine,
    AbstractSession,
    BatchReport,
    EpochReport,
    OnBatch,
    epoch_report,
    what_is_missing,
)
from pydeq.engines.group import AbstractGroup, Alone, gather_arrays, gather_json
from pydeq.errors import EngineUnavailableError
from pydeq.model import ModelSpec, SolverSpec

__all__ = [
    "DEVICES",
    "ENGINES",
    "AbstractEngine",
    "AbstractGroup",
    "AbstractSession",
    "Alone",
    "BatchReport",
    "Device",
    "EngineName",
    "EngineReport",
    "EpochReport",
    "OnBatch",
    "epoch_report",
    "find_engines",
    "gather_arrays",
    "gather_json",
    "get_engine",
    "get_group",
    "julia_cell",
]

EngineName = Literal["auto", "jax", "julia"]
ENGINES: tuple[str, ...] = get_args(EngineName)
Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineReport:
    """What is found of one engine.

    Attributes
    ----------
    name : str
        One of `ENGINES`.
    usable : bool
        Whether it can be used, as far as can be seen without starting Julia.
    detail : str
        What it is or, where it is not usable, why, and what to do.
    """

    name: str
    usable: bool
    detail: str


def get_engine(
    name: str,
    device: str = "auto",
    model: ModelSpec | None = None,
    solver: SolverSpec | None = None,
    n_processes: int = 1,
) -> AbstractEngine:
    """Return the engine called `name`, on `device`.

    Parameters
    ----------
    name : {"auto", "jax", "julia"}
        ``auto`` takes Julia where its environment has been set up, else JAX, and logs the choice.
        It takes JAX, too, where Julia is set up but does not start, where torch has been imported
        before it was started (which can crash the process), and outside of the main thread. In
        the main thread the choice is made once.
    device : {"auto", "cpu", "cuda"}
    model : ModelSpec, optional
    solver : SolverSpec, optional
        What the engine is wanted for: ``auto`` takes JAX, too, where Julia has not what they ask
        for.
    n_processes : int
        How many are to train together; of several ``auto`` takes JAX.

    Raises
    ------
    EngineUnavailableError
        If the engine or the device cannot be used here; says why and what to do.
    """
    if n_processes > 1:
        name = engine_of_several(name, n_processes)
    if name != "auto":
        return open_engine(name, device)
    choice = auto_choice()
    if choice == "julia" and model is not None and solver is not None:
        from pydeq.engines.julia import JuliaEngine, missing_on_gpu

        missing = what_is_missing(JuliaEngine, model, solver)
        if not missing and device == "cuda":
            missing = missing_on_gpu(model)
        if missing:
            _log.info("engine='auto': JAX (%s)", missing)
            choice = "jax"
    return open_engine(choice, device)


def julia_cell(code: str, seed: int = 0) -> CellFunction:
    """Return the cell of a Lux layer, its parameters drawn by Lux. Starts Julia.

    Parameters
    ----------
    code : str
        Julia code that makes a Lux layer, with Lux and Random at hand. The layer is given the tuple
        ``(u, h)`` of two arrays, whose axes are those of the state turned round and then the
        samples, and returns f(u, h), like them. The code is run, in this process.
    seed : int, default=0
        Of Julia's random numbers.

    Returns
    -------
    CellFunction
        For the Julia engine, with ``stability="none"`` or ``"jacobian"``.

    Raises
    ------
    EngineUnavailableError
        If Julia cannot be used here, or lacks a package.
    EngineError
        If the code fails in Julia, or makes no Lux layer.

    Examples
    --------
    >>> import pydeq
    >>> code = "Chain(WrappedFunction(((u, h),) -> u .+ h), Dense(8 => 8, tanh))"
    >>> pydeq.julia_cell(code)  # doctest: +SKIP
    CellFunction(Chain(WrappedFunction(((u, h),) -> u .+ h), Dense(8 => 8, , layer_2.bias: (8,), ...
    """
    from pydeq.engines.julia import draw_cell

    return draw_cell(code, seed)


def get_group() -> AbstractGroup:
    """Return the processes that ``jax.distributed.initialize`` has connected with this one."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return Alone()
    from pydeq.engines.jax import JaxGroup

    return JaxGroup()


def find_engines() -> list[EngineReport]:
    """Return what is found of each engine; no engine is started, nothing raises."""
    jax, julia = _find("jax"), _find_julia()
    usable = jax.usable or julia.usable
    taken = f"takes {'julia' if julia.usable else 'jax'}" if usable else "has none to take"
    auto = EngineReport("auto", usable, taken)
    return [auto, jax, julia, _find("jax", "cuda")]


def open_engine(name: str, device: str) -> AbstractEngine:
    if name == "julia":
        from pydeq.engines.julia import JuliaEngine

        return JuliaEngine(device)
    from pydeq.engines.jax import JaxEngine

    return JaxEngine(device)


def engine_of_several(name: str, n_processes: int) -> str:
    """Return the engine called `name` in a fit of several processes, or raise."""
    if name == "julia":
        raise EngineUnavailableError(
            f"engine='julia' trains in one process, and jax.distributed has connected "
            f"{n_processes} for this fit. Pass engine='jax' or 'auto', or fit without "
            "jax.distributed.initialize()."
        )
    if name == "auto":
        _log.info("engine='auto': JAX (Julia trains in one process; this fit has %d)", n_processes)
    return "jax"


def auto_choice() -> str:
    """Return the engine that ``auto`` stands for, here and now."""
    if threading.current_thread() is not threading.main_thread():
        _log.info("engine='auto': JAX (this is not the main thread)")
        return "jax"
    return choice_of_main_process()


@functools.cache
def choice_of_main_process() -> str:
    """Return the engine that ``auto`` stands for in the main thread."""
    from pydeq.engines.julia import find_julia, runtime

    found = find_julia()
    if not found.ready:
        _log.info("engine='auto': JAX (%s)", found.problem)
        return "jax"
    if runtime.torch_came_first():
        _log.warning(
            "engine='auto': JAX, although Julia is set up: torch was imported before Julia was "
            "started, which can crash the process"
        )
        return "jax"
    try:
        runtime.start()
    except EngineUnavailableError as error:
        _log.warning("engine='auto': JAX, because Julia is set up but not usable: %s", error)
        return "jax"
    _log.info("engine='auto': Julia")
    return "julia"


def _find(name: str, device: str = "auto") -> EngineReport:
    label = name if device == "auto" else f"{name}, {device}"
    try:
        open_engine(name, device)
    except EngineUnavailableError as error:
        return EngineReport(label, False, str(error))
    except Exception as error:  # a broken installation fails in many ways
        detail = f"{type(error).__name__}: {error}; reinstall with `pip install pydeq`"
        return EngineReport(label, False, detail)
    return EngineReport(label, True, "")


def _find_julia() -> EngineReport:
    from pydeq.engines.julia import find_julia

    try:
        found = find_julia()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}; reinstall with `pip install pydeq`"
        return EngineReport("julia", False, detail)
    if found.ready:
        parts = [f"{found.executable}, project {found.project}"]
        parts += [f"system image {found.image}"] if found.image else []
        parts += [found.note] if found.note else []
        return EngineReport("julia", True, "; ".join(parts))
    return EngineReport("julia", False, f"{found.problem}. What to do: {found.advice}")
