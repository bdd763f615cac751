"""The command ``pydeq``. Whatever takes time to import is imported by the command that needs it."""

import sys

import click

from pydeq import __version__
from pydeq.cli.compare import compare
from pydeq.cli.demos import demo
from pydeq.cli.doctor import doctor
from pydeq.cli.fit import fit
from pydeq.cli.julia import julia

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


for command in (compare, demo, doctor, fit, julia):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
