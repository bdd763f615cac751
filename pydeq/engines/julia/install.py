"""Setting Julia up for pydeq: find or download it, install and precompile PyDEQ, test it all.

juliapkg does the first part. Its progress, and Julia's, goes to the terminal as it comes.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydeq.engines.julia.calls import compile_calls
from pydeq.engines.julia.environment import (
    JuliaEnvironment,
    bundled_project,
    find_julia,
    packages_shown,
)
from pydeq.engines.julia.image import find_image
from pydeq.engines.julia.probe import MAX_SHOWN, check_ends, show
from pydeq.errors import EngineUnavailableError

__all__ = ["install_julia", "julia_status", "self_test"]

NETWORK = """\
Behind a proxy, set HTTPS_PROXY (and HTTP_PROXY) to it; where it signs its traffic itself, point
JULIA_SSL_CA_ROOTS_PATH and SSL_CERT_FILE to its certificate. Where Julia's package server is
blocked, JULIA_PKG_SERVER names a mirror. A machine without a network takes a Julia and a project
that were made elsewhere: PYTHON_JULIAPKG_EXE, PYTHON_JULIAPKG_PROJECT (a full path) and
PYTHON_JULIAPKG_OFFLINE=yes, with JULIA_DEPOT_PATH naming the folder of its packages."""

CUDA_PACKAGE = ("CUDA", "052768ef-5323-5732-b1bb-66c8b64840ba")

_TEST_SECONDS = 2 * 3600
"""Precompiling takes 20 minutes on two cores, and more on less."""


def julia_status() -> list[tuple[str, str]]:
    """Return what is found of Julia as lines of a name and a text; starts and writes nothing."""
    found = find_julia()
    lines = [
        ("usable", "yes" if found.ready else f"no: {found.problem}"),
        ("found by", found.origin),
        ("julia", f"{found.executable or 'none'}{f' ({found.version})' if found.version else ''}"),
        ("project", found.project or "none"),
        ("PyDEQ", str(bundled_project())),
    ]
    lines += packages_shown(found).items()
    if found.image:
        lines.append(("system image", found.image))
    if found.note:
        lines.append(("note", found.note))
    if not found.ready:
        lines.append(("what to do", found.advice))
    return lines


def install_julia(
    cuda: bool, update: bool, say: Callable[[str], None], sysimage: bool | None = None
) -> JuliaEnvironment:
    """Set Julia up, which takes many minutes the first time, and test that it works.

    Parameters
    ----------
    cuda : bool
        Add Julia's packages for NVIDIA GPUs.
    update : bool
        Take the newest versions of all packages that pydeq allows.
    say : callable
        Is handed a line of progress.
    sysimage : bool or None
        Build a system image where there is none of these versions; False: delete the one that is
        there; None: build it anew where one of other versions is there.

    Raises
    ------
    EngineUnavailableError
        If it fails; says why and what to do.
    """
    os.environ.setdefault("JULIA_CONDAPKG_BACKEND", "Null")
    found = find_julia()
    if found.can_install:
        _resolve(cuda, update, say)
        found = find_julia()
    if not found.ready:
        raise EngineUnavailableError(f"{found.problem}. What to do: {found.advice}.")
    say(f"Julia: {found.executable}, project {found.project}")
    found = _with_image(found, sysimage, say)
    say("Testing it: loading PyDEQ (precompiled, the first time), a fit and a prediction ...")
    _test(found)
    return found


def _with_image(
    found: JuliaEnvironment, wanted: bool | None, say: Callable[[str], None]
) -> JuliaEnvironment:
    """Build or delete the system image; return the environment as it is then."""
    image = find_image(str(found.executable), str(found.project), bundled_project())
    if wanted is False:
        if image.remove():
            say(f"Deleted {image.path}")
    elif (wanted or image.exists) and found.image is None:
        image.build(say)
    return find_julia()


def _resolve(cuda: bool, update: bool, say: Callable[[str], None]) -> None:
    """Let juliapkg find or download Julia, and install and precompile what is asked of it."""
    import juliapkg
    from juliapkg.state import STATE

    _check_writable(Path(STATE["project"]))
    # juliapkg asks each of these for its version, and would wait for as long as that takes.
    given = STATE["override_executable"]
    check_ends(filter(None, [given] if given else map(shutil.which, ("juliaup", "julia"))))
    say("Finding Julia, installing and precompiling its packages: minutes, 20 or more on a small")
    say("machine. What follows is said by juliapkg and Julia.")
    try:
        if cuda:
            juliapkg.add(*CUDA_PACKAGE)
        juliapkg.resolve(force=True, update=update)
    except Exception as error:  # of the network, of Julia, of juliapkg's own
        raise EngineUnavailableError(
            f"Setting Julia up failed: {type(error).__name__}: {error}\n{NETWORK}"
        ) from error


def _check_writable(project: Path) -> None:
    try:
        project.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=project):
            pass
    except OSError as error:
        raise EngineUnavailableError(
            f"Julia's packages are to be installed to {project}, which cannot be written to "
            f"({error.strerror}). Set PYTHON_JULIAPKG_PROJECT to the full path of a folder that "
            "can, now and whenever pydeq is used; or have it installed by someone who may."
        ) from error


def _test(found: JuliaEnvironment) -> None:
    """Run the self-test in a process of its own, as a user would meet it."""
    code = "from pydeq.engines.julia.install import self_test; self_test()"
    exit_code, last = show([sys.executable, "-c", code], _TEST_SECONDS)
    if exit_code:
        cure = "" if found.image is None else " What may help: pydeq julia install --no-sysimage."
        raise EngineUnavailableError(
            f"Julia ({found.executable}, project {found.project}) is there, but the test failed "
            f"(exit code {exit_code}; it is ended after {_TEST_SECONDS // 3600} hours, or "
            f"{MAX_SHOWN // 10**6} MB of messages).{cure}\n{last}"
        )


def self_test() -> None:
    """Solve, differentiate and train a small affine model, whose answers are known.

    At the end what makes later starts quicker is precompiled.
    """
    import numpy as np

    from pydeq.engines.julia.engine import JuliaEngine
    from pydeq.model import ModelSpec, OptimizerSpec, SolverSpec

    model = ModelSpec(1, 1, None, ())
    params: dict[str, Any] = {
        "cell.0.weight": np.array([[0.5]]),
        "cell.0.bias": np.array([0.25]),
    }
    tight = SolverSpec(abstol=1e-8, reltol=1e-8)
    optimizer = OptimizerSpec(learning_rate=0.1)
    session = JuliaEngine("cpu").open(model, tight, optimizer, params)
    x, target, weight = np.array([[1.0], [2.0]]), np.zeros((2, 1)), np.ones(2)
    z = x + 0.5  # of z = (z + x) / 2 + 1 / 4
    np.testing.assert_allclose(session.equilibrium(x).state, z, rtol=1e-6)
    gradient = 2 * z.mean() / 0.5  # of the mean of z ** 2 by the bias: dz/db = 1 / (1 - 1 / 2)
    _, found = session.loss_and_grad(x, target, weight)
    np.testing.assert_allclose(found["cell.0.bias"], gradient, rtol=1e-5)
    session.load_data(x, target, weight)
    session.train_epoch(np.arange(2), 2)
    # Adam's first step is as long as the rate.
    np.testing.assert_allclose(session.params()["cell.0.bias"], 0.25 - 0.1, rtol=1e-5)
    compile_calls(sys.modules["juliacall"])
