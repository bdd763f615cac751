"""What is compiled of PythonCall ahead of a start."""

import subprocess
import sys
import types

import pytest

from pydeq.engines.julia import calls, environment

LOADED = 'any(id -> id.name == "PyDEQCalls", keys(Base.loaded_modules))'
PROGRAM = f"""
import sys
from pydeq.engines.julia import runtime
from pydeq.engines.julia.calls import compile_calls
runtime.start()
import juliacall
compile_calls(juliacall)
print(juliacall.Main.seval({LOADED!r}))
"""


class FakeLibrary:
    """As much of Julia's library as is called."""

    def __init__(self):
        self.codes = []
        self.jl_eval_string = lambda code: self.codes.append(code.decode())


def test_it_is_loaded_only_if_it_has_been_precompiled():
    library = FakeLibrary()
    calls.load_calls(types.SimpleNamespace(CONFIG={"lib": library}))
    (code,) = library.codes
    assert "isprecompiled(package) && Base.require(package)" in code
    folder = environment.bundled_project()
    assert (folder / "calls" / "PyDEQCalls" / "Project.toml").is_file()
    assert code.count(f'raw"{folder}"') == 2
    calls.load_calls(types.SimpleNamespace(CONFIG={}))  # Python in Julia: there is nothing to do


@pytest.mark.julia
def test_what_has_been_precompiled_is_loaded_by_the_next_start():
    run = [sys.executable, "-c", PROGRAM]
    first, second = (subprocess.run(run, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout.split()[-1] == "True"
