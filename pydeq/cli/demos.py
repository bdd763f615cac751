"""The commands ``pydeq demo``; what they do is in :mod:`pydeq.cli.demo_jobs`."""

from pathlib import Path

import click

from pydeq.cli.options import (
    data_option,
    engine_option,
    out_option,
    plain_messages,
    seed_option,
)
from pydeq.engines import EngineName

__all__ = ["demo"]


@click.group()
def demo() -> None:
    """Run an example from its data to a figure.

    \b
    For example:
      pydeq demo cos                      one function's fixed point, as a cobweb
      pydeq demo double                   learn y = 2x from ten points
      pydeq demo digits --out figures     learn 8 x 8 digits; nothing to download
      pydeq demo mnist --reltol 1e-3      learn MNIST, in minutes
    """  # noqa: D301


@demo.command()
@out_option
def cos(out: Path) -> None:
    """Find where cos x = x, and draw how.

    Takes a second.
    """
    with plain_messages():
        from pydeq.cli import demo_jobs

        demo_jobs.cos(out)


@demo.command()
@engine_option
@out_option
@seed_option
def double(engine: EngineName, out: Path, seed: int | None) -> None:
    """Learn y = 2x from ten points, predict for -5.

    Takes seconds. The first model of the blog post; draws predictions over truth.
    """
    with plain_messages():
        from pydeq.cli import demo_jobs

        demo_jobs.double(out, engine=engine, seed=seed)


@demo.command()
@engine_option
@out_option
@seed_option
def digits(engine: EngineName, out: Path, seed: int | None) -> None:
    """Learn the 8 x 8 digits that come with scikit-learn.

    Takes under a minute, downloads nothing. Prints the test accuracy and draws a digit with the
    probabilities of its classes.
    """
    with plain_messages():
        from pydeq.cli import demo_jobs

        demo_jobs.digits(out, engine=engine, seed=seed)


@demo.command()
@engine_option
@out_option
@seed_option
@data_option
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
    with plain_messages():
        from pydeq.cli import demo_jobs

        demo_jobs.mnist(out, data, engine=engine, seed=seed, reltol=reltol)
