"""Damaged IDX files, packed or not: an array, or a ValueError that names the file."""

import gzip

import numpy as np
import pytest
from test_datasets import FILES, TEST_X, idx, write
from test_faults_model_file import damaged

from pydeq.datasets import load_mnist


@pytest.mark.parametrize("packed", [False, True])
def test_idx_at_random(packed, n_cases, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (2, 28, 28), np.uint8), np.array([3, 1], np.uint8)] * 2
    write(tmp_path, dict(zip(FILES, arrays, strict=True)))
    content = idx(arrays[2])
    path = tmp_path / TEST_X
    refused = 0
    for seed in range(n_cases):
        rng = np.random.default_rng(seed)
        if packed and seed % 2:
            path.write_bytes(damaged(gzip.compress(content), rng))
        else:
            broken = (
                damaged(content, rng) if seed % 3 else damaged(content[:16], rng) + content[16:]
            )
            path.write_bytes(gzip.compress(broken) if packed else broken)
        try:
            X = load_mnist(tmp_path)[2]
        except ValueError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert X.shape == (2, 784)
    assert 0 < refused < n_cases
