"""The commands ``pydeq julia``: set the Julia engine up, and say what is found of it."""

import click

from pydeq.errors import EngineError

__all__ = ["julia"]


@click.group()
def julia() -> None:
    """Set up the Julia engine, or say what is found of it.

    \b
    The engine needs a Julia and packages for it, which do not come with pydeq:
      pydeq julia install    find or download them, precompile, test
      pydeq julia status     what is there, what is missing, what to type

    \b
    A Julia that is there already is taken where these say so:
      PYTHON_JULIAPKG_EXE      the julia to run
      PYTHON_JULIAPKG_PROJECT  full path of the Julia project to use
      PYTHON_JULIAPKG_OFFLINE  yes: install nothing, download nothing
    """  # noqa: D301


@julia.command()
@click.option("--cuda", is_flag=True, help="Add Julia's packages for NVIDIA GPUs.")
@click.option("--update", is_flag=True, help="Take the newest packages that pydeq allows.")
@click.option(
    "--sysimage/--no-sysimage",
    default=None,
    help="Build a system image, from which Julia starts sooner; or delete it.",
)
def install(cuda: bool, update: bool, sysimage: bool | None) -> None:
    """Find or download Julia, install its packages, precompile, test.

    Takes many minutes the first time, and more for a system image, which needs a C compiler. Run
    again after an update of pydeq: an image of other versions is not used until it is built anew.
    """
    from pydeq.engines.julia import install_julia

    try:
        install_julia(cuda=cuda, update=update, sysimage=sysimage, say=click.echo)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo("The Julia engine works.")


@julia.command()
def status() -> None:
    """Say what is found of Julia, and what to do where it is missing.

    Starts nothing and downloads nothing. The exit code is 1 where Julia is not usable.
    """
    from pydeq.engines.julia import find_julia, julia_status

    for name, text in julia_status():
        click.echo(f"  {name:<20}{text}")
    if not find_julia().ready:
        raise click.exceptions.Exit(1)
