import gzip
import re
import struct
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import pydeq
from pydeq.cli import demo_jobs
from pydeq.cli.main import main
from pydeq.errors import EngineUnavailableError
from pydeq.training import Progress


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result

    return run


@pytest.fixture
def quick(monkeypatch):
    """Make demos small by overriding parameters of their models."""

    def quick(name, **overrides):
        full = getattr(demo_jobs, name)

        def small(*args, **kwargs):
            return full(*args, **kwargs, **overrides)

        monkeypatch.setattr(demo_jobs, name, small)

    return quick


@pytest.fixture
def mnist_folder(tmp_path):
    """A folder with MNIST's four files, of 200 and 30 samples: a class is where the ink is."""
    folder = tmp_path / "small"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 30)):
        y = np.arange(n) % 10
        pixels = rng.integers(0, 40, (n, 28, 28))
        for k, label in enumerate(y):
            pixels[k, 2 * label : 2 * label + 4] = 255
        images = struct.pack(">4I", 2051, n, 28, 28) + pixels.astype(np.uint8).tobytes()
        labels = struct.pack(">2I", 2049, n) + y.astype(np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def assert_picture(path):
    with Image.open(path) as picture:
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").tobytes())) > 10, "nothing is drawn"


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_help_is_for_people(run):
    for arguments, words in {
        (): ["pydeq demo digits", "doctor"],
        ("demo",): ["cos", "double", "digits", "mnist"],
        ("demo", "mnist"): ["--data", "--reltol", "--engine", "--out", "--seed"],
        ("doctor",): ["not usable, why"],
    }.items():
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert all(word in result.output for word in words), result.output
        assert "\b" not in result.output


def test_version(run):
    assert run("--version").output.strip().endswith(pydeq.__version__)


def test_help_loads_no_engine_and_no_figures():
    code = """
import sys
from click.testing import CliRunner
from pydeq.cli.main import main
CliRunner().invoke(main, ["demo", "--help"])
print([name for name in ("jax", "juliacall", "matplotlib", "tqdm", "torch") if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_cos(run, tmp_path):
    result = run("demo", "cos", "--out", "figures/here")
    assert result.exit_code == 0, result.output
    assert "0.739085" in result.stdout
    assert "figure: figures/here/cos.png" in result.stdout
    assert_picture(tmp_path / "figures" / "here" / "cos.png")


def test_double(run, tmp_path):
    result = run("demo", "double", "--engine", "jax")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("prediction for -5")]
    prediction = float(line.split(":")[1].split("/")[0])
    assert abs(prediction + 10) < 0.2
    assert "figure: out/double.png" in result.stdout
    assert "1000.0/1000" in result.stderr
    assert_picture(tmp_path / "out" / "double.png")


def test_double_from_a_start_without_equilibrium(run, tmp_path):
    result = run("demo", "double", "--seed", 10)
    assert result.exit_code == 0, result.output
    assert "prediction for -5: none" in result.stdout
    assert "try another --seed" in result.stdout
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 2, "one for the fit, one for the predictions"
    assert "10 of 10 samples" in warnings[0]
    assert ".py:" not in result.stderr
    assert_picture(tmp_path / "out" / "double.png")


def test_digits(run, quick, tmp_path):
    quick("digits", max_iter=6)
    result = run("demo", "digits", "--seed", 1)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    assert float(lines["test accuracy"]) > 0.85
    assert lines["converged"] == "450 of 450 test samples (100.00%)"
    assert lines["prediction"].endswith("/ true digit: 2")
    assert lines["figure"] == "out/digits.png"
    assert "6.0/6" in result.stderr
    assert_picture(tmp_path / "out" / "digits.png")


def test_mnist(run, mnist_folder, tmp_path):
    result = run("demo", "mnist", "--data", mnist_folder, "--reltol", 1e-2)
    assert result.exit_code == 0, result.output
    assert "equilibria to 0.01" in result.stdout
    assert "may lose its equilibrium" not in result.stdout
    assert "training samples that found no equilibrium: 0 of 200" in result.stdout
    assert "converged: 30 of 30 test samples" in result.stdout
    assert "/ true digit: 2" in result.stdout
    assert "1.0/1" in result.stderr
    assert_picture(tmp_path / "out" / "mnist.png")


def test_mnist_at_the_posts_tolerance_is_honest(run, mnist_folder):
    result = run("demo", "mnist", "--data", mnist_folder)
    assert result.exit_code == 0, result.output
    assert "equilibria to 0.1" in result.stdout
    assert "may lose its equilibrium" in result.stdout
    assert "--reltol 1e-3" in result.stdout
    assert "training samples that found no equilibrium: " in result.stdout


def test_mnist_without_data(run):
    result = run("demo", "mnist", "--data", "nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: MNIST is not complete: missing train-images")
    assert "nowhere" in result.stderr


@pytest.mark.parametrize("demo", ["double", "digits"])
def test_engine_that_is_not_usable(run, demo, monkeypatch):
    def unavailable(name, *_):
        raise EngineUnavailableError(f"engine={name!r} needs what is not here; install it")

    monkeypatch.setattr("pydeq.estimators.base.get_engine", unavailable)
    result = run("demo", demo, "--engine", "julia")
    assert result.exit_code == 1
    assert "Error: engine='julia' needs what is not here; install it\n" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments", [("--engine", "torch"), ("--seed", "-1"), ("--seed", "x"), ("--reltol", "0")]
)
def test_bad_option(run, arguments):
    result = run("demo", "mnist", *arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in result.stderr


def test_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for demo in ("cos", "digits"):
        result = run("demo", demo, "--out", "file/out")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: No figure can be written to the folder file/out")


def test_interrupt_goes_on_with_the_epochs_done(run, quick, monkeypatch):
    quick("double", max_iter=10**6)
    show = Progress.on_epoch

    shown = []

    def show_and_interrupt(progress, record):
        show(progress, record)
        shown.append(record)
        if len(shown) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_epoch", show_and_interrupt)
    result = run("demo", "double")
    assert result.exit_code == 0, result.output
    assert "Warning: fit was interrupted after 2" in result.stderr
    assert "prediction for -5" in result.stdout


def test_interrupt_before_the_first_epoch_ends_cleanly(run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pydeq.engines.jax.session.JaxSession.train_epoch", interrupted)
    for demo in ("double", "digits"):
        result = run("demo", demo)
        assert result.exit_code == 1
        assert "Aborted!" in result.stderr
        assert "figure" not in result.stdout


def test_doctor(run):
    result = run("doctor")
    assert result.exit_code == 0
    versions, devices, programs, engines = result.stdout.split("\n\n")
    for package in ("pydeq", "python", "numpy", "scikit-learn", "jax", "diffrax", "juliacall"):
        assert re.search(rf"^  {package} +\d", versions, re.MULTILINE), package
    assert re.search(r"^  (cpu|gpu|tpu) ", devices, re.MULTILINE)
    assert re.search(r"^  cache +.*PYDEQ_CACHE_DIR", programs, re.MULTILINE)
    assert re.search(r"^  auto +takes (jax|julia)$", engines, re.MULTILINE)
    assert re.search(r"^  jax +usable$", engines, re.MULTILINE)


def test_doctor_explains_what_is_broken(run, monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise ImportError("libcudart is missing")

    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setitem(sys.modules, "pydeq.engines.jax", Broken("pydeq.engines.jax"))
    monkeypatch.setattr("pydeq.cli.doctor.metadata.version", missing)
    result = run("doctor")
    assert result.exit_code == 0
    assert "not usable: ImportError: libcudart is missing" in result.stdout
    assert "not installed" in result.stdout


def test_doctor_does_not_start_julia():
    code = """
import sys
from click.testing import CliRunner
from pydeq.cli.main import main
CliRunner().invoke(main, ["doctor"])
print("juliacall" in sys.modules)
"""
    assert python(code).strip() == "False"
