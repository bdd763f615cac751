"""What a user waits for first: import, first fit, first predict, a cross-validation, a grid search.

    python tests/benchmarks/first_answer.py                          # about five minutes
    python tests/benchmarks/first_answer.py --beside ../before       # and another checkout
    python tests/benchmarks/first_answer.py --only iris
    python tests/benchmarks/first_answer.py --only iris --julia      # and the Julia engine

Every measurement is made in a new process, once with an empty cache of compiled programs and once
with the one that it left; what the processes do is in `TASKS`. scikit-learn's MLP and, where it is
installed, torchdeq take their turns in the same run. CPU seconds include those of child processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]

PYDEQ = """
    import pydeq, pydeq.engines.{engine}
    def make(width=128, **settings):
        return pydeq.DEQClassifier(
            n_state=width, hidden_layer_sizes=width, engine="{engine}", random_state=0, **settings
        )
"""

MODELS = {
    "pydeq": PYDEQ.format(engine="jax"),
    "pydeq, Julia": PYDEQ.format(engine="julia"),
    "scikit-learn": """
        from sklearn.neural_network import MLPClassifier
        def make(width=128, **settings):
            return MLPClassifier(width, random_state=0, **settings)
    """,
    "torchdeq": """
        import torch, torchdeq
        from sklearn.base import BaseEstimator, ClassifierMixin
        class Peer(ClassifierMixin, BaseEstimator):
            def __init__(self, width=128, max_iter=200):
                self.width, self.max_iter = width, max_iter
            def fit(self, X, y):
                torch.manual_seed(0)
                self.classes_ = np.unique(y)
                self.encoder = torch.nn.Linear(X.shape[1], self.width)
                self.inner = torch.nn.Linear(self.width, self.width)
                self.outer = torch.nn.Linear(self.width, self.width)
                self.decoder = torch.nn.Linear(self.width, len(self.classes_))
                layers = self.encoder, self.inner, self.outer, self.decoder
                self.deq = torchdeq.get_deq(f_solver="anderson", f_max_iter=30, f_tol=1e-3)
                parameters = [p for layer in layers for p in layer.parameters()]
                adam = torch.optim.Adam(parameters, 2e-3)
                target = torch.as_tensor(y)
                for _ in range(self.max_iter):
                    adam.zero_grad()
                    loss = torch.nn.functional.cross_entropy(self.output(X), target)
                    loss.backward()
                    adam.step()
                return self
            def output(self, X):
                h = self.encoder(torch.as_tensor(X, dtype=torch.float32))
                cell = lambda u: 0.5 * self.outer(torch.relu(self.inner(u + h)))
                return self.decoder(self.deq(cell, torch.zeros_like(h))[0][-1])
            def predict(self, X):
                return self.classes_[self.output(X).argmax(1).numpy()]
        def make(width=128, **settings):
            return Peer(width, **settings)
    """,
}

TASKS = {
    "iris": """
        lap("import")
        X, y = load_iris(return_X_y=True)
        model = make().fit(X, y)
        lap("first fit")
        model.predict(X)
        lap("first predict")
        model.predict(X[:7])
        lap("predict 7")
    """,
    "cross-validation": """
        X, y = load_iris(return_X_y=True)
        lap("import")
        cross_val_score(make(), X, y, cv=10)
        lap("ten folds of iris")
    """,
    "grid": """
        X, y = load_digits(return_X_y=True)
        lap("import")
        widths = [16, 24, 32, 48, 64, 80, 96, 128]
        models = [make(width, max_iter=10) for width in widths]
        Parallel(n_jobs=2)(delayed(cross_val_score)(m, X / 16, y, cv=2) for m in models)
        lap("eight widths on digits")
    """,
}

FRAME = """
    import json, os, time, warnings
    start = sum(os.times()[:4]), time.perf_counter()
    laps = {{}}
    def lap(name):
        global start
        now = sum(os.times()[:4]), time.perf_counter()
        laps[name] = now[0] - start[0], now[1] - start[1]
        start = now
    warnings.simplefilter("ignore")
    import numpy as np
    from joblib import Parallel, delayed
    from sklearn.datasets import load_digits, load_iris
    from sklearn.model_selection import cross_val_score
{model}
{task}
    if "grid" in {name!r}:  # the workers' seconds count when they have ended
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True)
        cpu, wall = laps["eight widths on digits"]
        laps["eight widths on digits"] = cpu + sum(os.times()[:4]) - start[0], wall
    print(json.dumps(laps))
"""


def measure(task, model, checkout, cache):
    """Return the laps of a new process, by name, in CPU and wall seconds; None where it failed."""
    indent = textwrap.indent
    code = FRAME.format(
        model=indent(textwrap.dedent(MODELS[model]), "    "),
        task=indent(textwrap.dedent(TASKS[task]), "    "),
        name=task,
    )
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "PYDEQ_CACHE_DIR": cache,
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        check=False,
    )
    if run.returncode:
        return None
    return json.loads(run.stdout.splitlines()[-1])


@click.command()
@click.option("--beside", type=click.Path(exists=True), help="Another checkout of pydeq.")
@click.option("--only", type=click.Choice(list(TASKS)), multiple=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--julia", is_flag=True, help="Measure the Julia engine too.")
def main(beside, only, repeats, julia):
    rows = [("pydeq", ROOT), *([("pydeq", Path(beside).resolve())] if beside else [])]
    rows += [("pydeq, Julia", ROOT)] if julia else []
    rows += [("scikit-learn", ROOT), ("torchdeq", ROOT)]
    for task in only or TASKS:
        for _ in range(repeats):
            for model, checkout in rows:
                name = f"{model} ({checkout.name})" if model == "pydeq" else model
                with tempfile.TemporaryDirectory() as cache:
                    for state in ("empty", "full") if model == "pydeq" else ("",):
                        laps = measure(task, model, checkout, cache)
                        show(task, name, state, laps)


def show(task, name, state, laps):
    if laps is None:
        print(f"{task:<18}{name:<24}could not be run", flush=True)
        return
    cells = [f"{lap} {cpu:.2f} ({wall:.2f})" for lap, (cpu, wall) in laps.items()]
    print(f"{task:<18}{name:<24}{state:<7}" + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
