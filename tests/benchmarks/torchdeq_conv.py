"""The convolutional model beside torchdeq: one cell, the same data, part by part in one run.

    pip install -e '.[bench]'
    python tests/benchmarks/torchdeq_conv.py --data FOLDER
    python tests/benchmarks/torchdeq_conv.py --data FOLDER --samples 2000 --epochs 1   # a try

All have the layers of `presets.mnist_conv`, the same starting weights, the same batches of 100 in
the same order, Adam at the same rate with the same decay of weights, and search to the same
relative tolerance. Each is a process of its own; only one works at a time, and they take turns
after each part of an epoch, so that what else the machine does hits all alike. The 10,000 test
images are predicted after each part, off the clock. What compiling takes is in the first part.

torchdeq's cell is bounded by its own spectral normalisation, each convolution as a matrix
``(out, in * 9)`` at most sqrt(0.8), or has its default, weight normalisation. As in peers.py its
searches have 40 iterations at most and 100 in prediction, its gradient is implicit, to 1e-3. The
exit code is 1 if pydeq's time to the accuracy is more than half of torchdeq's best, or not known.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from pydeq import presets
from pydeq.datasets import load_mnist
from pydeq.engines import Device, get_engine
from pydeq.estimators.parameters import fit_specs
from pydeq.model import Params, init_params
from pydeq.model.batching import epoch_order, iter_batches

BATCH = 100
CHUNK = 1000
CONTRACTION = 0.8
BOUNDED = {
    "norm_type": "spectral_norm",
    "norm_no_scale": True,
    "norm_target_norm": CONTRACTION**0.5,
    "norm_clip": True,
    "norm_clip_value": 1.0,
}
ROWS: dict[str, dict[str, Any]] = {
    "pydeq": {},
    "torchdeq anderson, bounded": {"solver": "anderson", "norm": BOUNDED},
    "torchdeq fixed_point_iter, bounded": {"solver": "fixed_point_iter", "norm": BOUNDED},
    "torchdeq anderson": {"solver": "anderson", "norm": {"norm_type": "weight_norm"}},
}


def specs_of(n_samples: int) -> Any:
    """Return the preset's specifications."""
    params = presets.mnist_conv(engine="jax").get_params()
    return fit_specs(params, "log_loss", n_samples, 784, 10)


class Ours:
    """A session of the JAX engine."""

    def __init__(
        self, x: np.ndarray, y: np.ndarray, params: Params, settings: Any, device: Device
    ) -> None:
        specs = specs_of(len(x))
        engine = get_engine("jax", device)
        self._session = engine.open(specs.model, specs.solver, specs.optimizer, params)
        self._session.load_data(x, y.astype(np.int32), np.ones(len(x), "f4"))

    def train(self, order: np.ndarray) -> None:
        self._session.train_epoch(order, BATCH)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        found = self._session.equilibrium(x)
        return found.output, float(found.n_evals.mean())


class Theirs:
    """The same layers in torch, and torchdeq between them."""

    def __init__(
        self, x: np.ndarray, y: np.ndarray, params: Params, settings: Any, device: Device
    ) -> None:
        import torch
        from torchdeq import apply_norm, get_deq, reset_norm

        torch.manual_seed(0)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch, self._reset, self._device = torch, reset_norm, device
        self._x = torch.from_numpy(x).to(device)
        self._y = torch.from_numpy(y.astype(np.int64)).to(device)
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        norm, pool = torch.nn.GroupNorm, torch.nn.MaxPool2d
        first = [conv(1, 16, 5, padding=2), pool(2), norm(4, 16), relu()]
        second = [conv(16, 32, 3, padding=1), pool(2), norm(4, 32), relu()]
        self._encoder = torch.nn.Sequential(*first, *second)
        self._cell = torch.nn.Sequential(
            conv(32, 32, 3, padding=1), relu(), conv(32, 32, 3, padding=1)
        )
        self._decoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 49, 10))
        self._start(params)
        self._parts = torch.nn.ModuleList((self._encoder, self._cell, self._decoder)).to(device)
        apply_norm(self._cell, args=dict(settings["norm"]))
        weights = [w for w in self._parts.parameters() if w.ndim > 1]
        others = [w for w in self._parts.parameters() if w.ndim == 1]
        # pydeq's alpha is divided by the sum of the batch's weights.
        decayed = {"params": weights, "weight_decay": 1e-2 / BATCH}
        self._adam = torch.optim.Adam([decayed, {"params": others}], 1e-3)
        self._options = {"lam": 1e-6} if settings["solver"] == "anderson" else {}
        self._n_evals = 0
        self._deq = get_deq(
            f_solver=settings["solver"],
            b_solver="fixed_point_iter",
            f_tol=1e-3,
            f_stop_mode="rel",
            b_tol=1e-3,
            b_stop_mode="rel",
            f_max_iter=40,
            b_max_iter=40,
            eval_f_max_iter=100,
            ift=True,
        )

    def _start(self, params: Params) -> None:
        """Take pydeq's starting weights, layer by layer."""
        own = [
            layer
            for part in (self._encoder, self._cell, self._decoder)
            for layer in part
            if hasattr(layer, "weight")
        ]
        given = list(params.values())
        with self._torch.no_grad():
            for layer, weight, bias in zip(own, given[::2], given[1::2], strict=True):
                weight = weight.T if weight.ndim == 2 else weight
                assert layer.weight.shape == weight.shape
                layer.weight.copy_(self._torch.from_numpy(weight.copy()))
                layer.bias.copy_(self._torch.from_numpy(bias.copy()))

    def _output(self, x: Any) -> Any:
        self._reset(self._cell)
        h = self._encoder(x.reshape(-1, 1, 28, 28))

        def f(z: Any) -> Any:
            self._n_evals += len(z)
            return self._cell(z + h)

        (*_, z), _ = self._deq(f, self._torch.zeros_like(h), solver_kwargs=dict(self._options))
        return self._decoder(z)

    def train(self, order: np.ndarray) -> None:
        self._parts.train()
        self._deq.train()
        for index in iter_batches(order, BATCH):
            chosen = self._torch.from_numpy(index).to(self._device)
            self._adam.zero_grad(set_to_none=True)
            output = self._output(self._x[chosen])
            self._torch.nn.functional.cross_entropy(output, self._y[chosen]).backward()
            self._adam.step()
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        self._parts.eval()
        self._deq.eval()
        self._n_evals = 0
        with self._torch.no_grad():
            chunks = self._torch.from_numpy(x).to(self._device).split(CHUNK)
            parts = [self._output(chunk).cpu().numpy() for chunk in chunks]
        return np.concatenate(parts), self._n_evals / len(x)


def work(pipe: Any, name: str, data: Path, n_samples: int, device: Device) -> None:
    """Serve one contestant: an order of samples comes, numbers go back."""
    x, y, x_test, y_test = load_mnist(data)
    params = init_params(specs_of(n_samples).model, np.random.default_rng(0), np.dtype("f4"))
    kind = Theirs if ROWS[name] else Ours
    contestant = kind(x[:n_samples], y[:n_samples], params, ROWS[name], device)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        contestant.train(order)
        spent = time.perf_counter() - wall, time.process_time() - cpu
        output, n_evals = contestant.predict(x_test)
        pipe.send((*spent, float(np.mean(output.argmax(axis=1) == y_test)), n_evals))


class Contestant:
    """A contestant's process, and what it has come to."""

    def __init__(self, name: str, data: Path, n_samples: int, device: Device) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.name, self.wall, self.cpu, self.reached = name, 0.0, 0.0, None
        self._process = context.Process(
            target=work, args=(other, name, data, n_samples, device), daemon=True
        )
        self._process.start()
        other.close()
        assert self._pipe.recv() == "ready"

    def take(self, order: np.ndarray, target: float) -> str:
        """Train on a part of an epoch; return a line about it."""
        self._pipe.send(order)
        wall, cpu, accuracy, n_evals = self._pipe.recv()
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu
        if accuracy >= target and self.reached is None:
            self.reached = self.wall, self.cpu
        return (
            f"| {self.name} | {wall:.1f} | {cpu:.1f} | {self.wall:.1f} | {self.cpu:.1f} "
            f"| {accuracy:.4f} | {n_evals:.1f} |"
        )

    def close(self) -> None:
        """Let the process end."""
        self._pipe.send(None)
        self._process.join()


def race(rows: list[Contestant], n_samples: int, epochs: int, n_parts: int, target: float) -> None:
    """Let all train by turns, until each has the accuracy or the epochs are over."""
    rng = np.random.default_rng(1)
    print("| epochs | contestant | s | CPU s | s so far | CPU s so far | accuracy | evaluations |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for epoch in range(epochs):
        order = epoch_order(n_samples, True, rng)
        for part, share in enumerate(np.array_split(order, n_parts), 1):
            for row in rows:
                if row.reached is None:
                    line = row.take(share, target)
                    print(f"| {epoch + part / n_parts:.2f} {line}", flush=True)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of MNIST.")
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Not all contestants.")
@click.option("--samples", default=60_000, show_default=True)
@click.option("--epochs", default=5, show_default=True, help="At most so many.")
@click.option("--parts", default=2, show_default=True, help="Turns in an epoch.")
@click.option("--accuracy", default=0.99, show_default=True, help="Of the test images.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(data, only, samples, epochs, parts, accuracy, device):
    """Train pydeq's and torchdeq's convolutional models by turns."""
    rows = [Contestant(name, data, samples, device) for name in only or ROWS]
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores", flush=True)
    race(rows, samples, epochs, parts, accuracy)
    for row in rows:
        row.close()
        said = (
            "not reached" if row.reached is None else "{:.1f} s, {:.1f} CPU s".format(*row.reached)
        )
        print(f"{row.name}: {accuracy} {said}")
    ours = [row.reached for row in rows if not ROWS[row.name]]
    others = [row.reached for row in rows if ROWS[row.name] and row.reached]
    is_met = bool(others and ours and ours[0] and ours[0][0] <= 0.5 * min(r[0] for r in others))
    print(f"half of torchdeq's best time or less: {'yes' if is_met else 'no'}")
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
