"""The command ``pydeq compare``: a preset in each engine, and in plain Julia, side by side.

Or, with ``--reference``, pydeq beside the results of the user's own program.
"""

from pathlib import Path
from typing import Any

import click

from pydeq.cli.options import data_option, out_option
from pydeq.errors import EngineError

__all__ = ["compare"]

_ENGINES = ("jax", "julia")


@click.command()
@click.option("--preset", type=click.Choice(["double", "mnist"]), help="What to run.")
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="NPZ or CSV with the results of your own program: x and prediction, or loss, or all.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --reference: a fitted model, written by save().  [default: the preset double]",
)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(_ENGINES),
    multiple=True,
    help="What computes; may be given more than once.  [default: both]",
)
@click.option("--original", is_flag=True, help="Run the post's program in plain Julia, too.")
@click.option(
    "--train-encoder/--no-train-encoder",
    default=True,
    show_default=True,
    help="Whether the encoder of mnist trains; in the post's program it never does.",
)
@click.option(
    "--tol",
    type=click.FloatRange(0, min_open=True),
    metavar="TOL",
    help="Tolerance of the equilibria, abstol and reltol.  [default: the post's]",
)
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="[default: the post's]")
@click.option(
    "--samples",
    type=click.IntRange(1),
    metavar="N",
    help="Train on the first N samples of mnist only.",
)
@data_option
@out_option
def compare(
    preset: str | None,
    reference: Path | None,
    model: Path | None,
    engines: tuple[str, ...],
    original: bool,
    train_encoder: bool,
    tol: float | None,
    epochs: int | None,
    samples: int | None,
    data: Path,
    out: Path,
) -> None:
    """Run a preset in each engine from the same start, and say how they differ.

    Weights, batches and their order are the same to the bit. What is not usable here is named and
    left out.

    With --reference, no preset is needed: your own program's results are read from the file, and
    pydeq's on the same inputs are set beside them. examples/guides/coming_from_julia.md has the
    lines that write such a file in Julia.
    """
    if reference is not None:
        if preset == "mnist" and model is None:
            raise click.UsageError("--reference for mnist needs --model, a fitted one.")
        _compare_reference(reference, model, out)
        return
    if model is not None:
        raise click.UsageError("--model goes with --reference.")
    if preset is None:
        raise click.UsageError("Give --preset, or --reference.")
    from pydeq import compare as work

    overrides: dict[str, Any] = {} if tol is None else {"abstol": tol, "reltol": tol}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if preset == "double":
            task = work.double_task(epochs, **overrides)
        else:
            overrides["train_encoder"] = train_encoder
            task = work.mnist_task(data, samples, epochs, **overrides)
        programs = [*(engines or _ENGINES), *(["original"] if original else [])]
        outcomes = [found for name in programs if (found := _run(task, name)) is not None]
        if not outcomes:
            raise click.ClickException("Nothing that was asked for is usable here.")
        for line in work.table(task, outcomes):
            click.echo(line)
        click.echo(f"figure: {work.draw(task, outcomes, out / f'compare-{preset}.png')}")
    except (EngineError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _run(task: Any, program: str) -> Any:
    """Return the outcome of one program, or None, having said why, where it is not usable."""
    from pydeq.compare import run_engine, run_original
    from pydeq.errors import EngineUnavailableError

    click.echo(f"{program} ...", err=True)
    try:
        return run_original(task) if program == "original" else run_engine(task, program)
    except EngineUnavailableError as error:
        click.echo(f"{program} is left out: {error}", err=True)
        return None


def _compare_reference(path: Path, model: Path | None, out: Path) -> None:
    """Set the results in a file beside pydeq's; print the verdict and draw the figure."""
    from pydeq.compare import reference as work
    from pydeq.estimators import load

    try:
        out.mkdir(parents=True, exist_ok=True)
        given = work.read_reference(path)
        both = work.set_beside(given, None if model is None else load(model))
        for line in work.verdict(both):
            click.echo(line)
        click.echo(f"figure: {work.draw(both, out / 'compare-reference.png')}")
    except (EngineError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
