"""Images moved by whole pixels."""

import numpy as np
import pytest

from pydeq.datasets import shifted


def test_each_image_is_moved_by_itself_and_zeros_come_after_it():
    images = np.random.default_rng(0).random((300, 2, 4, 3)).astype("f4")
    moved = shifted(images.reshape(300, -1), (2, 4, 3), 1, random_state=0).reshape(images.shape)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    ways = set()
    for one, source in zip(moved, padded, strict=True):
        of_one = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if (source[:, i : i + 4, j : j + 3] == one).all()
        ]
        ways.add(*of_one)
    assert len(ways) == 9
    assert moved.dtype == np.float32


def test_what_is_no_image_of_that_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\), 4 values; X has shape \(3, 5\)"):
        shifted(np.zeros((3, 5)), (1, 2, 2), 1, 0)
