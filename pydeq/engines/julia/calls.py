"""What is compiled of PythonCall ahead of a start: Julia's package PyDEQCalls.

PythonCall's first conversion of an argument takes almost two seconds to compile, which this package
has done. It is not part of PyDEQ's project: precompiling it starts a Python inside Julia, which not
every Python allows. So installing tries, and a start loads it if it has been precompiled.
"""

import ctypes
from typing import Any

from pydeq.engines.julia.environment import bundled_project

__all__ = ["compile_calls", "load_calls"]


def load_calls(juliacall: Any) -> None:
    """Load PyDEQCalls, and with it PyDEQ, if it has been precompiled."""
    _evaluate(juliacall, "Base.isprecompiled(package) && Base.require(package)")


def compile_calls(juliacall: Any) -> None:
    """Precompile PyDEQCalls, if that is possible."""
    path = "Base.locate_package(package)"
    _evaluate(juliacall, f"Base.compilecache(package, {path}, devnull, devnull)")


def _evaluate(juliacall: Any, action: str) -> None:
    """Run Julia code on the `package` by a function of Julia's library, which converts nothing."""
    library = juliacall.CONFIG.get("lib")
    if library is None:  # Python runs in Julia
        return
    function = library.jl_eval_string
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_void_p
    # A package is looked for in the environments up to the one that named it: that is the last.
    function(_CODE.format(folder=bundled_project(), action=action).encode())


_CODE = """
let environments = [raw"{folder}", joinpath(raw"{folder}", "calls")]
    try
        append!(LOAD_PATH, environments)
        package = Base.identify_package("PyDEQCalls")
        {action}
    catch  # it is a matter of speed alone
    finally
        filter!(!in(environments), LOAD_PATH)
    end
end;
"""
