"""Julia's threads: how many there are, and what lets them live in a Python process.

Julia's garbage collector stops a thread by a page that may not be read, so Julia has to handle
SIGSEGV. Asked to, it takes SIGINT, SIGTERM and others as well, which are Python's.
"""

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Iterator
from typing import final

import joblib

from pydeq.engines.julia.environment import julia_option

__all__ = ["Signals", "libc", "thread_options"]

MOST_THREADS = 16
"""Most threads that Julia is started with unasked: each has arrays of its own."""

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""By these a user, or joblib in its processes, says how many threads a process may have."""


def thread_options() -> dict[str, str]:
    """Return the environment variables by which juliacall starts Julia with threads, if any.

    What the user has said stays. Left to itself, Julia has as many threads as the process may use
    cores, but for what `LIMITS` say, and for `MOST_THREADS`. This is so on Linux alone: elsewhere
    it has not been tested that signals come back to Python.
    """
    options = {}
    asked = julia_option("threads") or os.environ.get("JULIA_NUM_THREADS")
    handles_signals = julia_option("handle_signals")
    if not asked and handles_signals != "no" and sys.platform == "linux" and _n_threads() > 1:
        asked = options["PYTHON_JULIACALL_THREADS"] = str(_n_threads())
    if asked and asked not in ("1", "1,0") and handles_signals is None:
        options["PYTHON_JULIACALL_HANDLE_SIGNALS"] = "yes"
    return options


def _n_threads() -> int:
    """Return the cores of this process: by its affinity, its container and `LIMITS`."""
    said = [os.environ.get(name, "").partition(",")[0] for name in LIMITS]
    limits = [int(text) for text in said if text.isdigit() and int(text) > 0]
    return min(joblib.cpu_count(), MOST_THREADS, *limits)


@final
class Signals:
    """The process's signals, of which Julia gets those alone that it needs.

    Attributes
    ----------
    julias : dict of int to buffer
        What is done at the signals that are Julia's, as the C library keeps it.
    """

    NEEDED = tuple(getattr(signal, name) for name in ("SIGSEGV", "SIGBUS") if hasattr(signal, name))

    def __init__(self) -> None:
        self.julias: dict[int, ctypes.Array] = {}

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Let Julia take what signals it wants in the block, and then give back the others."""
        if sys.platform == "win32" or julia_option("handle_signals") != "yes":
            yield
            return
        is_running = "juliacall" in sys.modules
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        others = signal.valid_signals() - {*self.NEEDED, signal.SIGKILL, signal.SIGSTOP}
        actions = {number: _action(number) for number in others}
        try:
            yield
        finally:
            self.julias = {number: _action(number) for number in self.NEEDED}
            for number, action in actions.items():
                libc().sigaction(number, action, None)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if is_running:  # since before pydeq was asked
                _return_interrupts()

    def hold(self) -> None:
        """Make sure that Julia's signals are still its own.

        ``faulthandler.enable()`` takes them: it would end the process where Julia's garbage
        collector stops a thread.
        """
        for number, action in self.julias.items():
            libc().sigaction(number, action, None)


def _return_interrupts() -> None:
    """Give Ctrl-C back to Python, which hears it between two calls of Julia."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None:
        signal.signal(signal.SIGINT, handler)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process."""
    return ctypes.CDLL(None)


def _action(number: int) -> ctypes.Array:
    """Return what is done at a signal: a ``struct sigaction``, of 152 bytes at most."""
    action = ctypes.create_string_buffer(512)
    libc().sigaction(number, None, action)
    return action
