"""`pydeq compare --reference`: what is read, what is refused, and the verdict."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pydeq import DEQClassifier, presets
from pydeq.cli.main import main
from pydeq.compare.reference import read_reference, set_beside, verdict
from pydeq.datasets import load_digits

X = np.arange(-3.0, 4.0)


@pytest.fixture(scope="module")
def model():
    return presets.double(max_iter=30, engine="jax").fit(*presets.double_data())


@pytest.fixture
def run(tmp_path, model):
    """Run the command on the arrays of a file, with the model; return its result."""
    model.save(tmp_path / "model.safetensors")

    def run(path="reference.npz", with_model=True, **arrays):
        path = tmp_path / path
        if arrays:
            np.savez(path, **arrays)
        args = ["compare", "--reference", str(path), "--out", str(tmp_path)]
        if with_model:
            args += ["--model", str(tmp_path / "model.safetensors")]
        return CliRunner().invoke(main, args)

    return run


def test_predictions_that_are_the_same(run, model, tmp_path):
    result = run(x=X, prediction=model.predict(X[:, None]))
    assert result.exit_code == 0, result.output
    assert "7 predictions: the same, to single precision" in result.stdout
    assert "not converged in pydeq     0 of 7" in result.stdout
    with Image.open(tmp_path / "compare-reference.png") as picture:
        picture.verify()


@pytest.mark.parametrize(
    ("factor", "says"),
    [(1.005, "they agree"), (1.05, "near, but not the same"), (2, "they differ")],
)
def test_predictions_that_are_not(run, model, factor, says):
    result = run(x=X, prediction=factor * model.predict(X[:, None]))
    assert says in result.stdout
    assert f"over the largest value     {(factor - 1) / factor:.1e}" in result.stdout


def test_the_shapes_of_a_julia_program(run, model):
    """(n_features, n), as Flux and Lux have it, and NPZ.jl writes it."""
    prediction = model.predict(X[:, None])
    same = run(x=X[None, :], prediction=prediction[None, :]).stdout
    assert "7 predictions: the same" in same
    assert "7 predictions: the same" in run(x=X[None, :], prediction=prediction).stdout


def test_a_loss_curve_of_another_length(run, model):
    result = run(loss=np.array(model.loss_curve_)[:20])
    assert "loss of 20 epochs: the same" in result.stdout


def test_the_preset_is_fitted_for_as_long_as_the_curve(run, model):
    # The post has the sum of the squares of its ten samples.
    result = run(with_model=False, loss=10 * np.array(model.loss_curve_))
    assert "loss of 30 epochs: the same" in result.stdout


def test_csv(run, model, tmp_path):
    table = np.column_stack([X, model.predict(X[:, None]), X])
    path = tmp_path / "reference.csv"
    np.savetxt(path, table, delimiter=",", header='"x",prediction,note', comments="")
    assert "7 predictions: the same" in run(path.name).stdout
    np.savetxt(path, model.loss_curve_, header="loss", comments="")
    assert "loss of 30 epochs: the same" in run(path.name).stdout


def test_csv_with_several_columns_of_an_array(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("x1,x2,prediction\n1,2,3\n4,5,6\n")
    found = read_reference(path)
    np.testing.assert_array_equal(found.x, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(found.prediction, [[3], [6]])


def test_logits_of_a_classifier(tmp_path):
    features, y, X_test, _ = load_digits()
    settings = {"n_state": 8, "hidden_layer_sizes": 8, "engine": "jax", "max_iter": 1}
    model = DEQClassifier(**settings).fit(features[:200], y[:200])
    logits = model.equilibrium(X_test[:30]).output
    np.savez(tmp_path / "a.npz", x=X_test[:30].T, prediction=logits.T)
    both = set_beside(read_reference(tmp_path / "a.npz"), model)
    assert next(verdict(both)) == "30 predictions: the same, to single precision"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": X}, "needed arrays x and prediction, or loss, or all three; found y"),
        ({"prediction": X}, "needed arrays x and prediction"),
        ({"x": X, "loss": X}, "needed arrays x and prediction"),
        ({"x": X, "prediction": X[:3]}, "x has 7 samples, prediction 3"),
        ({"x": np.ones((3, 4)), "prediction": X[:3]}, "needed x of shape (n, 1)"),
        ({"loss": np.ones((2, 2))}, "needed loss (n_epochs,); found shape (2, 2)"),
        ({"loss": np.array(["a"])}, "needed loss to be one- or two-dimensional numbers"),
        ({"loss": np.array([1, np.nan])}, "loss has values that are not finite"),
    ],
)
def test_bad_arrays(run, arrays, says):
    result = run(**arrays)
    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.npz", "x,prediction\n", "needed an NPZ file"),
        ("a.csv", "x,prediction\n1,b\n", "needed numbers below a line of names"),
        ("a.csv", "x,prediction\n1,2,3\n", "2 names, but 3 columns"),
    ],
)
def test_bad_files(run, tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    result = run(name)
    assert result.exit_code == 1
    assert says in result.stderr


def test_usage(tmp_path):
    def fails(*args):
        result = CliRunner().invoke(main, ["compare", *args])
        assert result.exit_code == 2
        return result.stderr

    file = str(tmp_path / "r.npz")
    np.savez(file, loss=X)
    assert "Give --preset, or --reference" in fails()
    assert "--model goes with --reference" in fails("--preset", "double", "--model", file)
    assert "needs --model" in fails("--preset", "mnist", "--reference", file)
