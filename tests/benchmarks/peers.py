"""pydeq beside its peers: one model, one run, contestants in turn, part by part of each epoch.

    pip install -e '.[bench]'
    python tests/benchmarks/peers.py                       # all that run here: hours on 2 cores
    python tests/benchmarks/peers.py --only pydeq --only 'torchdeq anderson'
    python tests/benchmarks/peers.py --samples 2560 --epochs 1          # a try, two minutes
    python tests/benchmarks/peers.py stability             # 20 epochs, 5 seeds
    python tests/benchmarks/peers.py rows                  # the contestants by name

All have the same MNIST, the cell 784 -> 100, 100 -> 500 tanh -> 100 on z + h, 100 -> 10, the same
starting weights, the same batches in the same order, Adam at the same rate, and are asked for the
same relative tolerance in the residual. Rows with a star have a model of their own, for
orientation. Each contestant is a process of its own; only one works at a time, and they take turns
after each part of an epoch, so that what else the machine does hits all alike. Test samples are
predicted between the parts, off the clock; the residual of what comes back is recomputed by one
numpy float64 function, with the weights as they act. "s to 0.97" has compilation in it, "s an
epoch" has not (the median leaves out the first epoch). Evaluations count what a sample's row was
computed for: a peer that stops a batch as a whole pays the slowest sample's for all.

DeepEquilibriumNetworks.jl runs where julia is on the path (or $PYTHON_JULIAPKG_EXE) and
$PYDEQ_BENCH_JULIA_PROJECT names a project as peers_deqn.jl describes it; pydeq's Julia engine where
`pydeq julia status` finds it ready. What cannot run is in the table with the reason. The exit code
is 1 if a bar was missed.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from contestants.driver import Process  # noqa: E402
from contestants.figure import draw  # noqa: E402
from contestants.judge import judge  # noqa: E402
from contestants.results import Bar, Point, Result, bars, table  # noqa: E402
from contestants.stability import outcomes  # noqa: E402
from contestants.table import ROWS  # noqa: E402
from contestants.task import write_array, write_task  # noqa: E402

from pydeq.datasets import load_mnist  # noqa: E402
from pydeq.model.batching import epoch_order  # noqa: E402

PACKAGES = ("pydeq", "numpy", "jax", "torch", "torchdeq", "optimistix", "lineax", "optax")


def machine() -> str:
    """Return what the figures were measured on, and how, as Markdown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    command = shlex.join(["python", *sys.argv])
    return (
        f"`{command}`\n\n{names[0] if names else platform.processor()}, "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start; "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"{', '.join(versions)}."
    )


def parts_of(order: np.ndarray, n_parts: int, batch_size: int) -> list[np.ndarray]:
    """Cut an epoch's order into parts of whole batches; the last takes what is left."""
    n_batches = -(-len(order) // batch_size)
    cuts = [round(n_batches * i / n_parts) * batch_size for i in range(1, n_parts)]
    return [part for part in np.split(order, cuts) if len(part)]


def compete(chosen, data, folder: Path, numbers, epochs: int, n_parts: int, save) -> list[Result]:
    """Run the contestants side by side; `save` is handed the results after each epoch."""
    x, y, x_test, y_test = data
    write_task(folder, (x, y, x_test), numbers)
    processes = [Process(row, folder, numbers["threads"]) for row in chosen]
    for process in processes:
        process.wait()
        print(f"{process.row.name}: {process.problem or 'ready'}", file=sys.stderr)
    rng = np.random.default_rng([numbers["seed"], 1])
    n_parts = len(parts_of(np.arange(len(x)), n_parts, numbers["batch_size"]))
    results = [Result(row, n_parts, len(x_test)) for row in chosen]
    turn = 0
    for epoch in range(epochs):
        order = epoch_order(len(x), True, rng)
        for i, part in enumerate(parts_of(order, n_parts, numbers["batch_size"])):
            write_array(folder / "order.i8", part)
            pairs = list(zip(processes, results, strict=True))
            # Each part begins with another contestant, so that none always follows the same one.
            turn += 1
            for process, result in pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]:
                if not process.problem:
                    at = epoch + (i + 1) / n_parts
                    _take_turn(process, result, folder, (x_test, y_test), numbers["reltol"], at)
        for process, result in zip(processes, results, strict=True):
            result.problem = process.problem
        save(results)
    for process in processes:
        process.close()
    return results


def _take_turn(process: Process, result: Result, folder: Path, test, reltol: float, at: float):
    trained = process.ask("train", str(folder / "order.i8"))
    prefix = folder / "predicted"
    predicted = process.ask("predict", str(prefix)) if trained else {}
    if not predicted:
        return
    result.peak = process.ask("memory").get("peak", result.peak)
    before = result.points[-1].seconds if result.points else 0.0
    point = Point(
        epoch=at,
        seconds=before + trained["seconds"],
        forward=trained["forward"],
        backward=trained["backward"],
        loss=trained["loss"],
        predict_seconds=predicted["seconds"],
        predict_evals=predicted["evals"],
        verdict=judge(prefix, *test, reltol),
    )
    result.points.append(point)
    if not np.isfinite(point.loss):
        process.problem = "diverged: its loss is not finite"
    print(
        f"epoch {at:5.2f}  {process.row.name:45s} {trained['seconds']:7.2f} s  "
        f"forward {point.forward:6.1f}  backward {point.backward:6.1f}  "
        f"accuracy {point.verdict.accuracy:.4f}  converged {point.verdict.converged:.4f}",
        file=sys.stderr,
    )


def bar_table(found: list[Bar]) -> str:
    """Return the bars as Markdown."""
    lines = ["", "| what | measured | bar | |", "| --- | --- | --- | --- |"]
    for bar in found:
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[bar.reached]
        lines.append(f"| {bar.what} | {bar.measured} | {bar.bar} | {verdict} |")
    return "\n".join(lines)


def write(out: Path, about: str, numbers: dict, results: list[Result]) -> None:
    """Write table, figure and numbers to the folder `out`."""
    found = bars(results)
    text = f"{about}\n\n{table(results)}\n{bar_table(found)}\n"
    (out / "peers.md").write_text(text)
    record = {
        "about": about,
        "numbers": numbers,
        "results": [result.as_dict() for result in results],
        "bars": [vars(bar) for bar in found],
    }
    (out / "peers.json").write_text(json.dumps(record, indent=1))
    draw(results, out / "peers.png")


def check_stability(data, epochs: int, seeds: int, out: Path) -> int:
    """Print the stability part; return how many of pydeq's fits missed their bar."""
    print(
        "| fit | epochs | ended | failed | not converged | worst residual | accuracy | evals | s |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows, missed = [], 0
    for each in outcomes(data, epochs, seeds):
        rows.append({**each._asdict(), "stable": each.stable})
        ours = each.what.startswith("DEQClassifier()")
        verdict = "" if not ours else ", reached" if each.stable else ", **missed**"
        missed += ours and not each.stable
        print(
            f"| {each.what} | {each.epochs} | {each.stop_reason}{verdict} | {each.n_failed} | "
            f"{each.not_converged} of {each.n_test} | {each.worst:.1e} | {each.accuracy:.4f} | "
            f"{each.evals_first:.1f} -> {each.evals_last:.1f} | {each.seconds:.0f} |",
            flush=True,
        )
    (out / "stability.json").write_text(json.dumps(rows, indent=1))
    return missed


@click.command()
@click.argument("part", default="peers", type=click.Choice(["peers", "stability", "rows"]))
@click.option("--only", multiple=True, metavar="NAME", help="These contestants (see: rows).")
@click.option("--data", type=Path, default=None, help="Folder that holds MNIST/raw.")
@click.option("--out", type=Path, default=Path("out/peers"), show_default=True)
@click.option("--samples", type=int, default=None, help="The first training samples only.")
@click.option("--epochs", type=int, default=None, help="10, for stability 20.")
@click.option("--parts", default=4, show_default=True, help="Parts of an epoch.")
@click.option("--seeds", default=5, show_default=True, help="For stability.")
@click.option("--threads", default=2, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--reltol", default=1e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(part, only, data, out, samples, epochs, parts, seeds, **numbers) -> None:
    """Measure PART (peers, stability), or list the contestants (rows)."""
    if part == "rows":
        for row in ROWS:
            print(row.name, "" if row.default else "(by --only)", row.settings or "")
        return
    unknown = set(only) - {row.name for row in ROWS}
    if unknown:
        raise click.BadParameter(f"no such contestant: {', '.join(unknown)}; see `peers.py rows`")
    data = data or Path(os.environ.get("PYDEQ_DATA", HERE.parents[2] / "shared" / "data"))
    x, y, x_test, y_test = load_mnist(data)
    arrays = (x[:samples], y[:samples], x_test, y_test)
    out.mkdir(parents=True, exist_ok=True)
    about = machine()
    print(about, "\n")
    if part == "stability":
        sys.exit(bool(check_stability(arrays, epochs or 20, seeds, out)))
    chosen = [row for row in ROWS if (row.name in only if only else row.default)]
    with tempfile.TemporaryDirectory() as name:
        save = partial(write, out, about, numbers)
        results = compete(chosen, arrays, Path(name), numbers, epochs or 10, parts, save)
        for log in Path(name, "log").glob("*.txt"):
            (out / log.name).write_bytes(log.read_bytes())
    print(table(results))
    print(bar_table(bars(results)))
    sys.exit(any(bar.reached is False for bar in bars(results)))


if __name__ == "__main__":
    main()
