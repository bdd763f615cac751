"""What every contestant is given and hands back: raw little-endian files, for Julia too.

Arrays are C order; a weight is (n_in, n_out), which the same bytes make (n_out, n_in) in Julia.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pydeq.model import ModelSpec, Params, init_params, parameter_shapes

__all__ = ["MODEL", "WEIGHTS", "Task", "read_array", "write_array", "write_task"]

MODEL = ModelSpec(784, 10, 100, (500,), "tanh", "none")
"""784 -> 100, 100 -> 500 tanh -> 100 on z + h, 100 -> 10."""

WEIGHTS = tuple(parameter_shapes(MODEL))

_DTYPES = {"f4": np.dtype("<f4"), "i8": np.dtype("<i8")}


@dataclass(frozen=True)
class Task:
    """The folder of a run, read.

    Attributes
    ----------
    folder : Path
    learning_rate, reltol : float
    batch_size, threads, seed : int
    x, x_test : ndarray (n, 784) of float32
    y : ndarray (n,) of int64
    params : dict of str to ndarray
        Where all start from.
    """

    folder: Path
    learning_rate: float
    reltol: float
    batch_size: int
    threads: int
    seed: int
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    params: Params

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """Return the task that `write_task` put there."""
        numbers = json.loads((folder / "task.json").read_text())
        shapes = parameter_shapes(MODEL)
        return cls(
            folder=folder,
            x=_mapped(folder / "x.f4", (-1, 784)),
            y=read_array(folder / "y.i8", (-1,)),
            x_test=_mapped(folder / "x_test.f4", (-1, 784)),
            params={name: read_array(folder / f"{name}.f4", shapes[name]) for name in WEIGHTS},
            **numbers,
        )


def write_task(folder: Path, data, numbers: dict[str, float | int]) -> Params:
    """Write the samples (x, y, x_test), `numbers` and the starting weights; return the weights."""
    x, y, x_test = data
    write_array(folder / "x.f4", x)
    write_array(folder / "y.i8", y)
    write_array(folder / "x_test.f4", x_test)
    params = init_params(MODEL, np.random.default_rng(numbers["seed"]), np.dtype("f4"))
    for name, value in params.items():
        write_array(folder / f"{name}.f4", value)
    (folder / "task.json").write_text(json.dumps(numbers))
    return params


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array in the dtype that the file's name ends in."""
    np.ascontiguousarray(array, _DTYPES[path.suffix[1:]]).tofile(path)


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read it back."""
    return np.fromfile(path, _DTYPES[path.suffix[1:]]).reshape(shape)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read it back into memory that all processes share until one writes to it."""
    mapped = np.memmap(path, _DTYPES[path.suffix[1:]], mode="c").reshape(shape)
    return mapped.view(np.ndarray)
