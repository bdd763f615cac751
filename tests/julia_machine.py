"""A machine without Julia, and what makes it look like one that has it."""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import juliapkg.state

from pydeq import engines
from pydeq.engines.julia import environment

ROOT = Path(__file__).resolve().parents[1]
real_choice = engines.auto_choice  # before the tests' own fixture replaces it


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def choice():
    """What `auto` stands for, found out anew."""
    engines.choice_of_main_process.cache_clear()
    try:
        return real_choice()
    finally:
        engines.choice_of_main_process.cache_clear()


def set_env(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    juliapkg.state.reset_state()


def make_julia(folder):
    executable = folder / "bin" / "julia"
    executable.parent.mkdir(parents=True)
    # What it says where it is asked for its version, and for libjulia.
    executable.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo julia version 1.11.4; exit; fi\n'
        "printf '/nowhere/libjulia.so\\0/nowhere'\n"
    )
    executable.chmod(0o755)
    return executable


def dependencies():
    project = tomllib.loads((environment.bundled_project() / "Project.toml").read_text())
    return [*project["deps"], "PythonCall"]


def make_project(folder, packages):
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"PythonCall": metadata.version("juliacall")}
    entries = [f'[[deps.{name}]]\nversion = "{versions.get(name, "1.2.3")}"\n' for name in packages]
    (folder / "Manifest.toml").write_text('manifest_format = "2.0"\n' + "\n".join(entries))
    return folder


def record(executable, **changes):
    """Write what juliapkg notes after it has set Julia up."""
    own = environment.OWN_JSON
    meta = {
        "meta_version": juliapkg.deps.META_VERSION,
        "executable": str(executable),
        "version": "1.11.4",
        "libjulia": "/nowhere/libjulia.so",
        "bindir": "/nowhere",
        "override_executable": None,
        "deps_files": {str(own): {"timestamp": 0, "hash_sha256": sha256(own)}},
        **changes,
    }
    path = Path(juliapkg.state.STATE["meta"])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(meta))


def python(code, **env):
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return result.stdout
