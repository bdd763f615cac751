"""The command ``pydeq``. Whatever takes time to import is imported by the command that needs it."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pydeq import __version__
from pydeq.cli.compare import compare
from pydeq.cli.julia import julia
from pydeq.engines import ENGINES, EngineName
from pydeq.errors import EngineError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pydeq")
def main() -> None:
    """Deep equilibrium models: predictions that are steady states of a neural ODE.

    \b
    Start with one of these:
      pydeq demo digits    train on handwritten digits, draw one (under a minute)
      pydeq doctor         what is installed, and what works here
      pydeq julia install  set up the Julia engine, which does not come with pydeq
    """  # noqa: D301


main.add_command(julia)
main.add_command(compare)


@main.group()
def demo() -> None:
    """Run an example from its data to a figure.

    \b
    For example:
      pydeq demo cos                      one function's fixed point, as a cobweb
      pydeq demo double                   learn y = 2x from ten points
      pydeq demo digits --out figures     learn 8 x 8 digits; nothing to download
      pydeq demo mnist --reltol 1e-3      learn MNIST, in minutes
    """  # noqa: D301


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every demo has."""
    decorators = (
        click.option(
            "--engine",
            type=click.Choice(ENGINES),
            default="auto",
            show_default=True,
            help="What computes.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default="out",
            show_default=True,
            help="Folder of the figure.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            metavar="N",
            help="Of the random start.  [default: the demo's own]",
        ),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@demo.command()
@_options
def cos(engine: EngineName, out: Path, seed: int | None) -> None:
    """Find where cos x = x, and draw how.

    Takes a second. Nothing here is random, and numpy computes it: --engine and --seed change
    nothing.
    """
    del engine, seed
    with _plain_messages():
        from pydeq.cli import demos

        demos.cos(out)


@demo.command()
@_options
def double(engine: EngineName, out: Path, seed: int | None) -> None:
    """Learn y = 2x from ten points, predict for -5.

    Takes half a minute. The first model of the blog post; draws predictions over truth.
    """
    with _plain_messages():
        from pydeq.cli import demos

        demos.double(out, engine=engine, seed=seed)


@demo.command()
@_options
def digits(engine: EngineName, out: Path, seed: int | None) -> None:
    """Learn the 8 x 8 digits that come with scikit-learn.

    Takes under a minute, downloads nothing. Prints the test accuracy and draws a digit with the
    probabilities of its classes.
    """
    with _plain_messages():
        from pydeq.cli import demos

        demos.digits(out, engine=engine, seed=seed)


@demo.command()
@_options
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default="data",
    show_default=True,
    help="Folder of the MNIST files; downloaded to it where torchvision is installed.",
)
@click.option(
    "--reltol",
    type=click.FloatRange(0, min_open=True),
    metavar="TOL",
    help="Tolerance of the equilibria (abstol too); 1e-3 trains well.  [default: 0.1, the post's]",
)
def mnist(
    engine: EngineName, out: Path, seed: int | None, data: Path, reltol: float | None
) -> None:
    """Learn MNIST, one epoch, as the blog post does.

    Takes minutes. At the post's own tolerance the cell may lose its equilibrium while it trains;
    with --reltol 1e-3 it does not. Prints the test accuracy and draws a digit with the
    probabilities of its classes.
    """
    with _plain_messages():
        from pydeq.cli import demos

        demos.mnist(out, data, engine=engine, seed=seed, reltol=reltol)


@main.command()
def doctor() -> None:
    """Say what is installed, and what works here.

    Versions, devices and engines; for an engine that is not usable, why, and what to do.
    """
    from pydeq.cli.doctor import report

    for line in report():
        click.echo(line)


@contextlib.contextmanager
def _plain_messages() -> Iterator[None]:
    """Show warnings, and errors that a user can cure, as a line each, without Python's detail."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            yield
        except (EngineError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


if __name__ == "__main__":
    sys.exit(main())
