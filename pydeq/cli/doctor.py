"""What pydeq finds on this machine: versions, devices, engines, and what to do for the rest."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

import click

from pydeq.engines import EngineReport, find_engines

__all__ = ["doctor", "report"]

_PACKAGES = ("numpy", "scikit-learn", "jax", "jaxlib", "diffrax", "juliacall", "torchvision")


@click.command()
def doctor() -> None:
    """Say what is installed, and what works here.

    Versions, devices and engines; for an engine that is not usable, why, and what to do.
    """
    for line in report():
        click.echo(line)


def report() -> Iterator[str]:
    """Yield the lines of the report. No line raises, and Julia is not started."""
    yield "Versions"
    yield _line("pydeq", _version("pydeq"))
    yield _line("python", f"{platform.python_version()} ({sys.executable})")
    yield _line("system", f"{platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        yield _line(package, _version(package))
    yield ""
    yield "Devices that JAX sees"
    yield from _devices()
    yield ""
    yield "Compiled programs of the JAX engine"
    yield _line("cache", _cache())
    yield ""
    yield "Engines"
    for engine in find_engines():
        yield _line(engine.name, _engine(engine))


def _line(name: str, text: str) -> str:
    return f"  {name:<14}{text}"


def _version(package: str) -> str:
    # From the package's metadata: importing juliacall would start Julia.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> Iterator[str]:
    # A broken installation of jax fails in many ways, and the report is for just these.
    try:
        import jax

        devices = jax.devices()
    except Exception as error:
        yield _line("none", f"{type(error).__name__}: {error}")
        return
    for device in devices:
        yield _line(device.platform, f"{device.device_kind} (number {device.id})")


def _cache() -> str:
    try:
        from pydeq.engines.jax import describe_cache

        return describe_cache()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _engine(engine: EngineReport) -> str:
    """Return whether an engine works; where not, why and what to do."""
    if engine.name == "auto":
        return engine.detail
    state = "usable" if engine.usable else "not usable"
    return f"{state}: {engine.detail}" if engine.detail else state
