"""The one place that imports juliacall: starts Julia when first asked, and loads PyDEQ in it.

Julia lives once in a process, from its start to the end. What goes wrong is said in Python: see
:class:`JuliaError`, and :func:`start` for what is refused.
"""

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

from pydeq.engines.julia.calls import load_calls
from pydeq.engines.julia.environment import (
    INSTALL,
    JuliaEnvironment,
    bundled_project,
    find_julia,
    julia_option,
    packages_shown,
)
from pydeq.engines.julia.probe import find_library
from pydeq.engines.julia.threads import Signals, thread_options
from pydeq.errors import EngineError, EngineUnavailableError

__all__ = [
    "Julia",
    "JuliaError",
    "calling",
    "is_started",
    "start",
    "torch_came_first",
    "versions",
]

MESSAGE_LENGTH = 400
"""Most characters of a Julia message that an exception repeats."""

_log = logging.getLogger(__name__)


@final
class JuliaError(EngineError):
    """Julia code failed; the message is short.

    Attributes
    ----------
    julia_trace : str
        Julia's own message, whole, and its backtrace.
    """

    def __init__(self, message: str, julia_trace: str = "") -> None:
        super().__init__(message)
        self.julia_trace = julia_trace
        if julia_trace:
            self.add_note("This error's `julia_trace` has Julia's backtrace.")


@final
@dataclass(frozen=True)
class Julia:
    """What the engine needs of a running Julia.

    Attributes
    ----------
    pydeq : module
        The Julia module PyDEQ; its function ``f!`` is the attribute ``f_b``.
    vector, strings, integers : callable
        Make a ``Vector{Any}``, ``Vector{String}``, ``Vector{Int}`` of their arguments.
    load : callable
        Loads the Julia packages of these names, where the project has all of them, and returns the
        names of those that it has not.
    version : callable
        Returns Julia's version as a text.
    describe : callable
        Returns the type, the message and the trace of a Julia exception and its backtrace.
    n_threads : int
        How many threads Julia has.
    """

    pydeq: Any
    vector: Callable[..., Any]
    strings: Callable[..., Any]
    integers: Callable[..., Any]
    load: Callable[..., Any]
    version: Callable[..., Any]
    describe: Callable[..., Any]
    n_threads: int = 1


class Process:
    """What has become of Julia in this process."""

    julia: Julia | None = None
    failure: EngineUnavailableError | None = None
    is_fork: bool = False
    signals = Signals()
    lock = threading.RLock()


def is_started() -> bool:
    """Return whether pydeq has started Julia in this process, or in the one it was forked from."""
    return Process.julia is not None


def start(
    asked: str = "engine='julia' was asked for",
    instead: str = "engine='jax' works without Julia",
) -> Julia:
    """Return the running Julia, after starting it if need be.

    Parameters
    ----------
    asked, instead : str
        Why it is needed and what does without, in the message where it is not set up.

    Raises
    ------
    EngineUnavailableError
        If it is not set up or does not start; if this process was forked from one in which it
        runs; if this is not the main thread. A start that failed is not tried again: half of a
        Julia cannot be taken back.
    """
    _refuse_fork_and_thread()
    with Process.lock:
        if Process.failure is not None:
            raise Process.failure
        if Process.julia is None:
            environment = find_julia()
            if not environment.ready:
                raise EngineUnavailableError(
                    f"{asked}, but {environment.problem}. What to do: {environment.advice}. "
                    f"`pydeq julia status` tells more, and {instead}."
                )
            try:
                Process.julia = _start(environment)
            except EngineUnavailableError as error:
                Process.failure = error
                raise
    return Process.julia


def torch_came_first() -> bool:
    """Return whether Julia has yet to be started, but torch is there; together they may crash.

    See https://github.com/pytorch/pytorch/issues/78829.
    """
    return not is_started() and "torch" in sys.modules


def versions() -> dict[str, str]:
    """Return the versions of Julia and of the packages that the engine is made of."""
    julia = start()
    with calling("Asking for versions"):
        version = str(julia.version())
    return {"julia": version, **packages_shown(find_julia())}


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn what Julia throws inside into Python's exceptions.

    Julia's ``InterruptException`` becomes KeyboardInterrupt, everything else :class:`JuliaError`.

    Parameters
    ----------
    what : str
        What is being done, in words, for the message.
    """
    _refuse_fork_and_thread()
    Process.signals.hold()
    # Not imported: `start` did so, or there is nothing to be translated.
    thrown = sys.modules["juliacall"].JuliaError if "juliacall" in sys.modules else ()
    try:
        yield
    except thrown as error:
        raise _translated(error, what) from None


def _translated(error: Any, what: str) -> BaseException:
    assert Process.julia is not None
    kind, message, trace = Process.julia.describe(*error.args)
    if kind == "InterruptException":
        return KeyboardInterrupt()
    return JuliaError(f"{what} failed in Julia: {_short(message)}", trace)


def _short(message: str) -> str:
    """Return the first line of a message, and not all of that if it is long."""
    first = message.strip().partition("\n")[0]
    return first if len(first) <= MESSAGE_LENGTH else f"{first[:MESSAGE_LENGTH]} ..."


def _refuse_fork_and_thread() -> None:
    if Process.is_fork:
        raise EngineUnavailableError(
            "This process was forked from one in which Julia runs, and Julia does not survive "
            "that. Start workers afresh instead: multiprocessing.set_start_method('spawn') or "
            "'forkserver' before anything else, joblib's own backend 'loky'; or do not use "
            "engine='julia' before the fork."
        )
    if threading.current_thread() is not threading.main_thread():
        # Its garbage collector waits for the thread that started it, which waits for Python.
        raise EngineUnavailableError(
            "Julia can be used in the main thread only; in another it would hang or crash the "
            "process. Use processes instead (joblib's own backend 'loky'), or engine='jax', or "
            "'auto', which takes JAX in other threads."
        )


def _start(environment: JuliaEnvironment) -> Julia:
    if torch_came_first():
        warnings.warn(
            "torch was imported before Julia was started, which can crash the process. Call "
            "pydeq.engines.get_engine('julia') before `import torch`.",
            stacklevel=4,
        )
    _log.info("Starting Julia: %s, project %s", environment.executable, environment.project)
    if environment.note:
        _log.info("Julia: %s", environment.note)
    try:
        juliacall: Any = import_juliacall(_located(environment))
    except Exception as error:
        raise EngineUnavailableError(
            f"Julia ({environment.executable}, project {environment.project}) did not start: "
            f"{_short(str(error))}. What to do: {INSTALL}, which ends with a test; and see what "
            "Julia printed."
        ) from error
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=become_fork)
    return _load(juliacall)


def _located(environment: JuliaEnvironment) -> JuliaEnvironment:
    """Return the environment with its libjulia, which juliacall would look for without an end."""
    known = (
        environment.libjulia or julia_option("lib"),
        environment.bindir or julia_option("bindir"),
    )
    if all(known):
        return environment
    library, folder = find_library(str(environment.executable), str(environment.project))
    return dataclasses.replace(environment, libjulia=known[0] or library, bindir=known[1] or folder)


def import_juliacall(environment: JuliaEnvironment) -> Any:
    """Import juliacall, which starts Julia.

    It is told where Julia is. Left to itself it would ask juliapkg, which downloads and installs
    what it finds missing, without a word on why the import takes minutes; and which has to write
    to the project's folder even if nothing is missing.
    """
    os.environ.setdefault("JULIA_CONDAPKG_BACKEND", "Null")  # Python is there: this one
    settings = {
        "PYTHON_JULIACALL_EXE": environment.executable,
        "PYTHON_JULIACALL_PROJECT": environment.project,
        "PYTHON_JULIACALL_LIB": environment.libjulia,
        "PYTHON_JULIACALL_BINDIR": environment.bindir,
        "PYTHON_JULIACALL_SYSIMAGE": environment.image,
        **thread_options(),
    }
    with (
        _environment_variables(settings),
        _blocking_streams(),
        Process.signals.shared(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "torch was imported before juliacall")
        import juliacall
    return juliacall


@contextlib.contextmanager
def _environment_variables(settings: dict[str, str | None]) -> Iterator[None]:
    """Set environment variables for a while; those that the user has set, and None, stay."""
    added = {k: v for k, v in settings.items() if v is not None and k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _blocking_streams() -> Iterator[None]:
    """Give the standard streams back as they were.

    Julia makes those that are pipes non-blocking, for all who share them. To Python an empty pipe
    then looks like its end, and a full one raises BlockingIOError.
    """
    streams = []
    if sys.platform != "win32":  # where Python has no such switch before 3.12
        for stream in range(3):
            with contextlib.suppress(OSError):  # a closed one
                streams.append((stream, os.get_blocking(stream)))
    try:
        yield
    finally:
        for stream, blocking in streams:
            os.set_blocking(stream, blocking)


def become_fork() -> None:
    """Note that this process is a fork, in which Julia must not run: not even its exit hook."""
    Process.is_fork = True
    library = sys.modules["juliacall"].CONFIG.get("lib")

    def nothing(_: int) -> None: ...

    if library is not None:
        library.jl_atexit_hook = nothing


def _load(juliacall: Any) -> Julia:
    """Return PyDEQ and what is needed to talk to it."""
    load_calls(juliacall)
    main = juliacall.Main
    try:
        pydeq = main.seval(_LOAD_PYDEQ)(str(bundled_project()))
        parts = {name: main.seval(code) for name, code in _HELPERS.items()}
    except juliacall.JuliaError as error:
        message = str(error)
        unavailable = EngineUnavailableError(
            f"Julia runs, but its package PyDEQ does not load: {_short(message)}. "
            f"What to do: {INSTALL}, which ends with a test."
        )
        unavailable.add_note(message)
        raise unavailable from None
    return Julia(pydeq=pydeq, **parts)


# Where the active project does not know PyDEQ, its own folder serves as a second environment: it
# says what PyDEQ needs, and the active project where that is.
_LOAD_PYDEQ = """
function (folder)
    isnothing(Base.identify_package("PyDEQ")) && push!(LOAD_PATH, folder)
    return Base.require(Main, :PyDEQ)
end
"""

_HELPERS = {
    "vector": "(items...) -> Any[items...]",
    "strings": "(items...) -> String[items...]",
    "integers": "(items...) -> Int[items...]",
    "load": """
function (names...)
    missing_ones = [name for name in names if isnothing(Base.identify_package(name))]
    isempty(missing_ones) && foreach(name -> Base.require(Main, Symbol(name)), names)
    return missing_ones
end
""",
    "n_threads": "Threads.nthreads()",
    "version": "() -> string(VERSION)",
    "describe": """
function (exception, backtrace)
    message = sprint(showerror, exception; context = :limit => true)
    trace = isnothing(backtrace) ? message : sprint(showerror, exception, backtrace)
    return string(nameof(typeof(exception))), message, trace
end
""",
}
