"""Data larger than memory, killed fits, and fits in several processes: what each of them costs.

python tests/benchmarks/scale.py rows --out rows.json         (3 sizes; a 4 GB file in --folder)
python tests/benchmarks/scale.py kills --out kills.json       (50 kills of a fit with checkpoints)
python tests/benchmarks/scale.py deaths --out deaths.json     (one of 2 and of 4, 20 times)
python tests/benchmarks/scale.py processes --out processes.json    (1, 2 and 4 of them, MNIST)
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

HERE = Path(__file__)
N_FEATURES = 100
MOST_IN_MEMORY = 1_000_000
"""Rows up to which the same is measured from memory."""

EPOCHS_OF_DEATHS = 250
"""More than pass until the last death."""


@click.group()
def main():
    """Measure; each command writes a JSON file."""


def out_option(command):
    return click.option("--out", type=click.Path(path_type=Path), required=True)(command)


def run(*args, cpus=None, wait=True, errors=None, **environment):
    """Start this file's worker of that name in a process of its own."""
    command = [sys.executable, str(HERE), *map(str, args)]
    if cpus is not None:
        command = ["taskset", "-c", cpus, *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
    )
    return answer(process) if wait else process


def answer(process):
    said, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{process.args} ended with {process.returncode}")
    return json.loads(said.splitlines()[-1])


# --- rows ---


@main.command()
@click.option("--sizes", default="100000,1000000,10000000")
@click.option("--folder", type=click.Path(path_type=Path), default=tempfile.gettempdir())
@out_option
def rows(sizes, folder, out):
    """Memory and time of a fit of one epoch, from a file and from memory."""
    found = []
    for n in map(int, sizes.split(",")):
        path = folder / f"pydeq-rows-{n}.npy"
        make_file(path, n)
        try:
            for kind in ("file", "memory") if n <= MOST_IN_MEMORY else ("file",):
                found.append({"rows": n, "from": kind, **run("fit-rows", path, kind)})
                click.echo(json.dumps(found[-1]))
        finally:
            path.unlink()
    out.write_text(json.dumps(found, indent=1))


def make_file(path, n):
    rng = np.random.default_rng(0)
    X = np.lib.format.open_memmap(path, "w+", "f4", (n, N_FEATURES))
    for start in range(0, n, 100_000):
        X[start : start + 100_000] = rng.normal(size=(min(100_000, n - start), N_FEATURES))
    X.flush()


def memory(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


@main.command("fit-rows", hidden=True)
@click.argument("path")
@click.argument("kind")
def fit_rows(path, kind):
    """Fit; peak memory is that of the process, mapped pages of files included."""
    from pydeq import DEQClassifier

    X = np.load(path, mmap_mode="r")
    y = (X[:, 0] > 0).astype(np.int8)
    # In another map: the pages that were read go with the first.
    X = np.array(X) if kind == "memory" else np.load(path, mmap_mode="r")
    settings = {"n_state": 64, "hidden_layer_sizes": 64, "batch_size": 1000, "max_iter": 1}
    model = DEQClassifier(**settings, random_state=0, engine="jax", device="cpu")
    model.fit(np.array(X[:20_000]), y[:20_000])  # what is compiled is no part of it
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start, cpu = time.perf_counter(), time.process_time()
    model.fit(X, y)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = {"peak_mb": memory("VmHWM") - before, "microseconds_a_row": 1e6 * seconds / len(X)}
    print(json.dumps({**found, "cpu_microseconds_a_row": 1e6 * cpu / len(X)}))


# --- kills ---


@main.command()
@click.option("--n", default=50)
@out_option
def kills(n, out):
    """Kill fits of 20 epochs at random moments, `n` of them under way; go on, compare the bits."""
    rng, same, alive, tried = np.random.default_rng(0), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        unbroken = run("fit-kept", Path(folder) / "unbroken")
        # The time that a kill may fall in is that of a fit which finds its programs compiled.
        seconds = run("fit-kept", Path(folder) / "again")["seconds"]
        while alive < n:
            kept = Path(folder) / str(tried)
            process = run("fit-kept", kept, wait=False)
            while not kept.exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, seconds))
            alive += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.communicate()
            same += run("fit-kept", kept)["digest"] == unbroken["digest"]
            tried += 1
            click.echo(f"{tried} kills, {alive} of a fit under way, {same} times the same bits")
    found = {"kills": tried, "alive_when_killed": alive, "same_bits": same, **write_time(unbroken)}
    click.echo(json.dumps(found))
    out.write_text(json.dumps(found, indent=1))


def write_time(unbroken):
    share = unbroken["seconds_a_checkpoint"] / 60
    return {
        "seconds_a_checkpoint": unbroken["seconds_a_checkpoint"],
        "share_at_one_a_minute": share,
        "bytes": unbroken["bytes"],
    }


@main.command("fit-kept", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def fit_kept(folder):
    from pydeq import Checkpoint, DEQClassifier
    from pydeq.estimators import checkpoint, checkpoint_file

    spent, write = [], checkpoint_file.write

    def timed(*args):
        start = time.perf_counter()
        write(*args)
        spent.append(time.perf_counter() - start)

    checkpoint.checkpoint_file.write = timed
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 20)).astype("f4")
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = DEQClassifier(max_iter=20, tol=0.0, n_iter_no_change=20, random_state=0, engine="jax")
    start = time.perf_counter()
    model.fit(X, y, checkpoint=Checkpoint(folder, every_epochs=1))
    seconds = time.perf_counter() - start
    digest = "".join(checkpoint.digest(value) for value in model.params_.values())
    size = max(path.stat().st_size for path in folder.iterdir())
    mean = float(np.mean(spent)) if spent else 0.0
    found = {"digest": digest, "seconds": seconds, "seconds_a_checkpoint": mean, "bytes": size}
    print(json.dumps(found))


# --- deaths ---


@main.command()
@click.option("--sizes", default="2,4")
@click.option("--n", default=20)
@out_option
def deaths(sizes, n, out):
    """Kill one of the processes of a fit again and again; each start goes on from the last."""
    found, rng = [], np.random.default_rng(0)
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            unbroken = fit_together(size, Path(folder) / "unbroken")
            expected = digest_of(unbroken)
            kept = Path(folder) / "kept"
            ends = [one_death(size, kept, rng) for _ in range(n)]
            same = digest_of(fit_together(size, kept)) == expected
        waits = [end["seconds"] for end in ends]
        found.append(
            {"processes": size, "deaths": n, "longest_seconds": max(waits),
             "mean_seconds": float(np.mean(waits)), "with_a_message": sum(e["said"] for e in ends),
             "went_on": sum(e["went_on"] for e in ends), "same_bits_at_the_end": same}
        )  # fmt: skip
        click.echo(json.dumps(found[-1]))
    out.write_text(json.dumps(found, indent=1))


def fit_together(size, kept):
    port = free_port()
    return [
        run("fit-shared", rank, size, port, kept, wait=False, errors=subprocess.STDOUT)
        for rank in range(size)
    ]


def digest_of(processes):
    """Return the line in which the first process names its weights."""
    said = [process.communicate()[0] for process in processes]
    return next(line for line in said[0].splitlines() if line.startswith('{"digest"'))


def one_death(size, kept, rng):
    """Start, let some epochs pass, kill one, and see how the others end."""
    before = newest(kept)
    processes = fit_together(size, kept)
    while newest(kept) <= before + 1 and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    went_on = newest(kept) > before + 1
    dead = int(rng.integers(size))
    processes[dead].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    seconds = time.monotonic() - killed
    words = ("one of them has ended", "another task died", "leader", "coordinator")
    others = [text for rank, text in enumerate(said) if rank != dead]
    heard = all(any(word in text.lower() for word in words) for text in others)
    found = {"seconds": seconds, "said": heard and all(codes), "went_on": went_on}
    click.echo(json.dumps({"processes": size, **found}))
    return found


def newest(kept):
    """Return the epoch of the newest checkpoint, or 0."""
    return max(
        (int(path.stem.split("-")[1]) for path in kept.glob("epoch-*.safetensors")), default=0
    )


@main.command("fit-shared", hidden=True)
@click.argument("rank", type=int)
@click.argument("size", type=int)
@click.argument("port")
@click.argument("folder", type=click.Path(path_type=Path))
def fit_shared(rank, size, port, folder):
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", size, rank, heartbeat_timeout_seconds=10)
    from pydeq import Checkpoint, DEQClassifier
    from pydeq.estimators import checkpoint

    X = np.random.default_rng(0).normal(size=(400, 5)).astype("f4")
    settings = {"n_state": 8, "hidden_layer_sizes": 8, "tol": 0.0, "max_iter": EPOCHS_OF_DEATHS}
    model = DEQClassifier(
        **settings, n_iter_no_change=EPOCHS_OF_DEATHS, random_state=0, engine="jax"
    )
    model.fit(X, X[:, 0] * X[:, 1] > 0, checkpoint=Checkpoint(folder, every_epochs=1))
    digests = [checkpoint.digest(value) for value in model.params_.values()]
    print(json.dumps({"digest": digests}), flush=True)


# --- processes ---


@main.command()
@click.option("--sizes", default="1,2,4")
@click.option("--data", type=click.Path(), default="data", help="Folder of the MNIST files.")
@out_option
def processes(sizes, data, out):
    """Weights and time of three epochs of MNIST, in so many processes on the same cores."""
    found = []
    for dtype in ("f4", "f8"):
        weights = {}
        for size in map(int, sizes.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                port = free_port()
                # Where there are as many cores as processes, each has one to itself.
                alone = size > 1 and size <= (os.cpu_count() or 1)
                started = [
                    run("fit-one", rank, size, port, dtype, data, folder, wait=False,
                        cpus=str(rank) if alone else None)
                    for rank in range(size)
                ]  # fmt: skip
                seconds = max(answer(process)["seconds_an_epoch"] for process in started)
                weights[size] = dict(np.load(Path(folder) / "weights.npz"))
            error = difference(weights[size], weights[min(weights)])
            n_bytes = (sum(v.size for v in weights[size].values()) + 6) * int(dtype[1])
            found.append(
                {"dtype": dtype, "processes": size, "seconds_an_epoch": seconds,
                 "difference": error, "bytes_of_a_step": n_bytes}
            )  # fmt: skip
            click.echo(json.dumps(found[-1]))
    out.write_text(json.dumps(found, indent=1))


def difference(found, expected):
    return max(float(np.abs(found[n] - v).max() / np.abs(v).max()) for n, v in expected.items())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@main.command("fit-one", hidden=True)
@click.argument("rank", type=int)
@click.argument("size", type=int)
@click.argument("port")
@click.argument("dtype")
@click.argument("data")
@click.argument("folder")
def fit_one(rank, size, port, dtype, data, folder):
    if size > 1:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", size, rank)
    from pydeq import DEQClassifier, datasets

    X, y, _, _ = datasets.load_mnist(data)
    model = DEQClassifier(max_iter=3, random_state=0, engine="jax", device="cpu")
    model.fit(X.astype(dtype), y)
    if rank == 0:
        np.savez(f"{folder}/weights.npz", **model.params_)
    # The first epoch compiles.
    print(json.dumps({"seconds_an_epoch": float(np.mean(model.history_.seconds[1:]))}), flush=True)


if __name__ == "__main__":
    main()
