"""Functions compiled once: for this process in memory, for the next ones in the cache folder."""

import functools
import hashlib
import importlib
import logging
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from importlib import metadata
from pathlib import Path
from typing import Any, final

import jax

from pydeq.engines.jax import cache
from pydeq.engines.jax.device import Device

__all__ = ["MOST_PROGRAMS", "Program", "Run", "counts"]

MOST_PROGRAMS = 64
"""Kept in memory; those that were used longest ago go first. A width takes about five."""

QUICK: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}
"""Options of XLA for code that has the attribute `quick`."""

Run = Callable[[list[jax.Array]], Any]
"""A compiled program: a list of arrays to a tuple of arrays."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_programs: OrderedDict[Hashable, Run] = OrderedDict()
_counts = {"compiled": 0, "found": 0}


def counts() -> dict[str, int]:
    """Return how many programs this process has compiled, and how many found in the cache."""
    return dict(_counts)


@final
class Program:
    """A function of a description of its code and arrays, to a flat tuple of arrays.

    The arrays, in any tree, lie on the device that it runs on. The code may depend on the
    description, on the tree, and on the shapes and dtypes in it; where one of these is new, it is
    compiled, or found in the cache.

    Attributes
    ----------
    function : callable
        What is compiled, for another program to be made of.
    """

    def __init__(self, function: Callable[..., tuple[jax.Array, ...]]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, code: Hashable, *args: Any) -> Any:
        """Run it, compiling it first if need be."""
        return self.bind(code, *args)(jax.tree.leaves(args))

    def bind(self, code: Hashable, *args: Any) -> Run:
        """Return what runs the leaves of such arguments, whatever is in the arrays."""
        leaves, tree = jax.tree.flatten(args)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        (device,) = leaves[0].devices()
        key = (self.function, code, tree, shapes, device)
        with _lock:
            run = _programs.get(key)
            if run is not None:
                _programs.move_to_end(key)
        if run is None:
            run = self._load(code, args, leaves, device)
            with _lock:
                _programs[key] = run
                while len(_programs) > MOST_PROGRAMS:
                    _programs.popitem(last=False)
        return run

    def _load(self, code: Hashable, args: tuple, leaves: list[jax.Array], device: Device) -> Run:
        key, kept = "", None
        # A program that was kept is of the only device of its process, or the first.
        is_kept = getattr(code, "is_kept", True) and cache.is_used()
        if is_kept and device.id == 0 and jax.process_count() == 1:
            shapes = [f"{leaf.dtype}{leaf.shape}" for leaf in leaves]
            key = f"{self.function.__name__} {code} {jax.tree.structure(args)} {shapes}\n"
            key += _surroundings(device)
            kept = cache.find(key)
        if kept is not None:
            try:
                run = _deserialize(kept, device)
                _counts["found"] += 1
                return run
            except Exception as error:  # it is checked: this is another release of JAX's
                _log.info("A cached program could not be loaded: %s", error)
        return self._compile(code, args, leaves, key, device)

    def _compile(
        self, code: Hashable, args: tuple, leaves: list[jax.Array], key: str, device: Device
    ) -> Run:
        _counts["compiled"] += 1
        _log.info("Compiling %s", self.function.__name__)
        # No argument is left out, so that a program that was kept takes the same list.
        jitted = jax.jit(functools.partial(self.function, code), keep_unused=True)
        lowered = jitted.lower(*args)
        quick = device.platform == "cpu" and getattr(code, "quick", False)
        compiled = _compile_quickly(lowered) if quick else lowered.compile()
        # What calls back into Python or LAPACK needs more than XLA's own bytes.
        if key and "custom_call" not in lowered.as_text():
            _keep(key, compiled.runtime_executable(), device, leaves)
        tree = jax.tree.structure(args)
        return lambda leaves: compiled(*jax.tree.unflatten(tree, leaves))


def _compile_quickly(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options=QUICK)
    except Exception as error:  # another release of XLA may not know the option
        _log.info("Compiled without %s: %s", QUICK, error)
        return lowered.compile()


def _keep(key: str, executable: Any, device: Device, leaves: list[jax.Array]) -> None:
    """Keep a program, once it has shown that it runs when it is loaded."""
    try:
        content = executable.serialize()
        jax.block_until_ready(_deserialize(content, device)(leaves))
    except Exception as error:  # not every program, device and release of JAX's can do this
        _log.info("A program cannot be kept: %s", error)
        return
    cache.keep(key, content)


def _deserialize(content: bytes, device: Device) -> Run:
    """Return the program of XLA's bytes. They are machine code: `cache` vouches for the folder."""
    # As jax.experimental.serialize_executable does, which takes a pickle.
    xla_client: Any = importlib.import_module("jax._src.lib").xla_client
    devices: Any = xla_client.DeviceList((device,))
    executable = device.client.deserialize_executable(content, executable_devices=devices)

    def run(leaves: list[jax.Array]) -> tuple[jax.Array, ...]:
        outputs = executable.execute_sharded(leaves).disassemble_into_single_device_arrays()
        return tuple(shards[0] for shards in outputs)

    return run


@functools.cache
def _surroundings(device: Device) -> str:
    """Describe all else that a compiled program depends on."""
    versions = [
        f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "diffrax", "optax")
    ]
    return "\n".join(
        [
            f"source {_source()}",
            *versions,
            f"{device.platform} {device.device_kind} {device.client.platform_version}",
            f"{platform.system()} {platform.machine()} {_processor()}",
            f"threads {_n_threads()}",
            *(f"{name}={os.environ.get(name)}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
        ]
    )


def _source() -> str:
    """Digest the package: whatever of it changes, what was compiled may be of no use."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """Name the processor and its features: machine code for one may be none for another."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = text.split("\n\n")[0].splitlines()
    return " ".join(line.partition(":")[2].strip() for line in lines if line.startswith(wanted))


def _n_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
