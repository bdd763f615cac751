"""The command ``pydeq fit``: from files of samples and targets to a model file, in processes."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pydeq.cli.options import plain_messages

__all__ = ["fit"]

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life, a process is taken for dead by the others."""

GRACE_SECONDS = 5
"""What the others have to end by themselves, such as with an error of their own."""

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog="Exit code 1: the fit failed, or one of its processes ended.")
@click.option("--data", type=_file, required=True, help="Samples, .npy of (n, n_features).")
@click.option("--target", type=_file, required=True, help="Labels or values, .npy of n rows.")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--kind",
    type=click.Choice(["auto", "classifier", "regressor"]),
    default="auto",
    show_default=True,
    help="auto: real numbers are values, all else is labels.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder to go on from.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rank", type=int, hidden=True)
@click.option("--port", type=int, hidden=True)
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
def fit(
    data: Path,
    target: Path,
    model: Path,
    kind: str,
    checkpoint: Path | None,
    processes: int,
    rank: int | None,
    port: int | None,
    parameters: tuple[str, ...],
) -> None:
    """Fit a model to files, and write it to a file that pydeq.load reads.

    NAME=VALUE are the estimator's parameters; values are JSON, and what is no JSON is text.

    \b
    For example:
      pydeq fit --data X.npy --target y.npy --model m.safetensors max_iter=20
      pydeq fit --data X.npy --target y.npy --model m.safetensors \\
          --processes 2 --checkpoint kept hidden_layer_sizes=[64,64]
    """  # noqa: D301
    given = dict(map(_parameter, parameters))
    if processes > 1 and rank is None:
        _start(processes, sys.argv[1:])
        return
    with plain_messages():
        import numpy as np

        if rank is not None:
            _connect(rank, processes, port)
        X = np.load(data, mmap_mode="r")
        y = np.load(target, mmap_mode="r")
        estimator = _estimator(kind, y.dtype.kind == "f", given)
        estimator.fit(X, y, checkpoint=checkpoint)
        if not rank:
            estimator.save(model)
            history = estimator.history_
            click.echo(
                f"{model}: {type(estimator).__name__}, {len(history)} epochs, loss "
                f"{history.loss[-1]:.4g}"
            )


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} must be NAME=VALUE, such as max_iter=20.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _estimator(kind: str, has_real_target: bool, given: dict[str, Any]) -> Any:
    from pydeq.estimators import DEQClassifier, DEQRegressor

    if kind == "auto":
        kind = "regressor" if has_real_target else "classifier"
    estimator = DEQRegressor() if kind == "regressor" else DEQClassifier()
    return estimator.set_params(**given)


def _connect(rank: int, processes: int, port: int | None) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", processes, rank, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )


def _start(processes: int, arguments: Sequence[str]) -> None:
    """Run the same command in processes of this machine; end all where one ends badly."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "pydeq.cli.main", *arguments, "--port", str(port)]
    started = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(processes)]
    failed: int | None = None
    deadline = 0.0
    try:
        while any(process.poll() is None for process in started):
            ended = [rank for rank, process in enumerate(started) if process.poll()]
            if ended and failed is None:
                failed, deadline = ended[0], time.monotonic() + GRACE_SECONDS
            if failed is not None and time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.wait()
    failed = next((rank for rank, process in enumerate(started) if process.returncode), None)
    if failed is not None:
        raise click.ClickException(
            f"Process {failed} of {processes} ended with code {started[failed].returncode}, and "
            "the fit with it. With --checkpoint the same command goes on where it was."
        )
