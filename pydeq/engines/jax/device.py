"""Where the engine works, and under which settings of JAX."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pydeq.errors import EngineUnavailableError

__all__ = ["Device", "check_process", "find_devices", "own_settings"]

Device = Any
"""A device as JAX has it: its own name for the type is a variable, which no checker takes."""

_used_by = 0
"""The process that first used JAX here; 0: none did."""


def check_process() -> None:
    """Raise EngineUnavailableError in a child forked after JAX was used: there it would hang."""
    global _used_by
    if _used_by in (0, os.getpid()):
        _used_by = os.getpid()
        return
    raise EngineUnavailableError(
        "This process was forked from one that had used the JAX engine, whose threads do not come "
        "along: it would hang. Start processes otherwise: "
        "multiprocessing.get_context('spawn') or 'forkserver', also as the mp_context of "
        "ProcessPoolExecutor; joblib's backend 'loky', which is what n_jobs takes by itself."
    )


def find_devices(name: str) -> list[Device]:
    """Return the devices called `name`, of all processes, or raise EngineUnavailableError."""
    check_process()
    try:
        found = jax.devices()
    except Exception as error:  # RuntimeError, AssertionError: whatever a backend fails with
        raise EngineUnavailableError(
            f"JAX finds no device to work on: {error or type(error).__name__}. It was told to look "
            f"for {_platforms()}. Unset JAX_PLATFORMS, or set it to 'cpu'."
        ) from error
    if name == "auto":
        return found
    try:
        return jax.devices(name)
    except Exception as error:
        names = sorted({device.platform for device in found})
        raise EngineUnavailableError(
            f"device={name!r} was asked for, but JAX sees only {', '.join(names)}. "
            "For an NVIDIA GPU install pydeq[cuda] (jax's CUDA build) beside a CUDA 12 driver, "
            "or use device='auto' or 'cpu'."
        ) from error


def _platforms() -> str:
    platforms = os.environ.get("JAX_PLATFORMS")
    return f"JAX_PLATFORMS={platforms!r}" if platforms else "whatever there is"


@contextlib.contextmanager
def own_settings(device: Device, dtype: np.dtype) -> Iterator[None]:
    """Work on `device` and in `dtype`, whatever the user's JAX is set to; for this thread alone."""
    check_process()
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.default_device(device),
            jax.enable_x64(dtype == np.float64),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
            jax.disable_jit(False),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.check_tracer_leaks(False),
            # A GPU would round the factors of products to 10 bits, which is no float32.
            jax.default_matmul_precision("highest"),
        ):
            stack.enter_context(setting)
        yield
