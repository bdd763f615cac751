"""Asking a Julia executable something, with an end: of time, and of what it may print."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import IO, Any

from pydeq.errors import EngineUnavailableError

__all__ = ["MAX_SHOWN", "NoEndError", "ask", "check_ends", "find_library", "kill_group", "show"]

SECONDS = 60.0
"""A Julia on a cold disk takes some."""
MAX_BYTES, MAX_SHOWN = 100_000, 10_000_000

_WHERE = 'import Libdl; print(abspath(Libdl.dlpath("libjulia")), "\\0", Sys.BINDIR)'


class NoEndError(EngineUnavailableError):
    """A command takes too long, or prints too much."""


def ask(command: list[str], seconds: float | None = None) -> str:
    """Return what a command prints.

    Raises
    ------
    EngineUnavailableError
        If it cannot be run or fails; `NoEndError`, if it takes longer than `seconds` (default
        `SECONDS`) or prints more than `MAX_BYTES`. It and what it started are ended then.
    """
    seconds = SECONDS if seconds is None else seconds
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise EngineUnavailableError(f"{command[0]} cannot be run ({error})") from error
    printed: list[bytes] = []
    reader = threading.Thread(target=_read, args=(process.stdout, printed), daemon=True)
    reader.start()
    try:
        reader.join(seconds)
        if reader.is_alive():
            raise NoEndError(f"{command[0]} gave no answer within {seconds:g} seconds")
        if len(printed[0]) > MAX_BYTES:
            raise NoEndError(f"{command[0]} prints without end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.returncode != 0:
            raise EngineUnavailableError(
                f"{command[0]} did not end well (exit code {process.returncode})"
            )
    finally:
        kill_group(process)
        reader.join(1.0)  # until it has closed what it reads
    return printed[0].decode("utf-8", errors="replace")


def _read(stream: IO[bytes] | None, printed: list[bytes]) -> None:
    assert stream is not None
    with stream:
        printed.append(stream.read(MAX_BYTES + 1))


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """End a process that leads a session of its own, and all that it started in it."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def show(
    command: list[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command whose messages go to the terminal; return its exit code and its last lines.

    It and what it started are ended after `seconds`, or `MAX_SHOWN` characters.
    """
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        clock = threading.Timer(seconds, kill_group, [process])
        clock.start()
        left = MAX_SHOWN
        try:
            # Progress, as it comes; a line without end comes in parts.
            while left > 0 and (line := process.stderr.readline(10_000)):
                sys.stderr.write(line)
                last.append(line)
                left -= len(line)
            if left > 0:
                process.wait()
        finally:
            clock.cancel()
            kill_group(process)
    return process.returncode, "".join(last)


def check_ends(executables: Iterable[str]) -> None:
    """Raise EngineUnavailableError where one hangs when it is asked for its version.

    What else may be wrong with it is for its caller to find.
    """
    for executable in executables:
        try:
            ask([executable, "--version"])
        except NoEndError as error:
            raise EngineUnavailableError(f"{error}. {_ANOTHER}") from error
        except EngineUnavailableError:
            pass


_ANOTHER = (
    "Set PYTHON_JULIAPKG_EXE to a julia that works, or take this one off PATH (and juliaup's "
    "too), so that `pydeq julia install` downloads one"
)


def find_library(executable: str, project: str) -> tuple[str, str]:
    """Return the paths of libjulia and of Julia's folder of programs.

    juliacall would ask the same, and wait for as long as it takes.
    """
    options = [f"--project={project}", "--startup-file=no", "-O0", "--compile=min"]
    library, end, folder = ask([executable, *options, "-e", _WHERE]).partition("\0")
    if not end:
        raise EngineUnavailableError(f"{executable} does not say where libjulia is. {_ANOTHER}")
    return library, folder
