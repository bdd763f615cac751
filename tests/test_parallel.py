"""Several processes and several devices learn the same weights as one."""

import numpy as np
import pytest
from parallel_cases import GIVEN, TASKS, alone, error, finish, learned, start, write_data

OF_TWO = {
    **TASKS,
    # With one batch an epoch, in any order, the steps are those of one process.
    "own": {"kind": "DEQRegressor", "target": "values", "rows": "own",
            "given": {**GIVEN, "batch_size": 200}},
    "spoiled": {**TASKS["classes"], "rows": "own", "spoiled": 1},
    "disagreed": {**TASKS["classes"], "other_alpha": 1},
    "julia": {**TASKS["classes"], "engine": "julia"},
}  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes wrote to, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    write_data(folder)
    said, codes = finish(start(folder, 2, OF_TWO))
    assert codes == [0, 0], said
    return folder, said


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """The folder that a process with two devices wrote to."""
    folder = tmp_path_factory.mktemp("devices")
    write_data(folder)
    said, codes = finish(start(folder, 1, TASKS, devices=2))
    assert codes == [0], said
    return folder


@pytest.mark.parametrize("name", ["classes", "values", "own"])
def test_two_processes_learn_what_one_does(name, two):
    folder, _ = two
    first, second = (learned(folder, name, 2, rank) for rank in (0, 1))
    assert error(first, alone(folder, OF_TWO[name])) < 1e-11
    assert all(np.array_equal(second[key], value) for key, value in first.items())


@pytest.mark.parametrize("name", TASKS)
def test_two_devices_learn_what_one_does(name, devices):
    found = learned(devices, name, 1, 0)
    assert error(found, alone(devices, TASKS[name])) < 1e-11


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spoiled", "Input X contains NaN"),
        ("disagreed", "processes of a fit need the same alpha"),
        ("julia", "engine='julia' trains in one process"),
    ],
    # By its value, the last would go to the process with Julia, and start the two once more.
    ids=["data", "parameters", "engine"],
)
def test_what_one_process_refuses_all_refuse(name, text, two):
    _, said = two
    for of_one in said:
        assert text in next(line for line in of_one.splitlines() if line.startswith(f"{name}:"))
