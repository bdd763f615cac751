"""The engines by name. Asking for one imports it; importing this module imports none."""

import logging

from pydeq.engines.base import AbstractEngine
from pydeq.errors import EngineUnavailableError

__all__ = ["ENGINES", "get_engine"]

ENGINES = ("auto", "jax", "julia")

_log = logging.getLogger(__name__)


def get_engine(name: str, device: str = "auto") -> AbstractEngine:
    """Return the engine called `name`, on `device`.

    Parameters
    ----------
    name : {"auto", "jax", "julia"}
        ``auto`` takes Julia where its environment has been set up, else JAX, and logs the choice.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    EngineUnavailableError
        If the engine or the device cannot be used here; says why and what to do.
    """
    if name == "julia":
        raise EngineUnavailableError(
            "engine='julia' is not part of this version of pydeq yet; use engine='jax' (or 'auto')."
        )
    from pydeq.engines.jax.session import JaxEngine

    engine = JaxEngine(device)
    if name == "auto":
        _log.info("engine='auto': JAX (the Julia engine is not part of this version)")
    return engine
