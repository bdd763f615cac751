"""What the commands share: options, and messages without Python's detail."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pydeq.engines import ENGINES
from pydeq.errors import EngineError

__all__ = ["data_option", "engine_option", "out_option", "plain_messages", "seed_option"]

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default="data",
    show_default=True,
    help="Folder of the MNIST files; downloaded to it where they are not there.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What computes.",
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="out",
    show_default=True,
    help="Folder of the figure.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    help="Seed of the random start.  [default: the demo's own]",
)


@contextlib.contextmanager
def plain_messages() -> Iterator[None]:
    """Show warnings, and errors that a user can cure, as a line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            yield
        except (EngineError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"Warning: {message}", err=True)
