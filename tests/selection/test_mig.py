"""MIG, by hand: labels with few rows are filled first, and quality counts."""

from __future__ import annotations

import numpy as np
import pytest

from codetune.selection.mig import mig_rows
from codetune.selection.row_vectors import RowVectors

# Two clusters that are orthogonal, of three equal rows and of one. Softmax(1 / 0.07) is 1 to six digits.
ROWS = RowVectors(np.eye(2, dtype=np.float32)[[0, 0, 0, 1]], np.arange(4))
CLUSTER = np.array([4, 4, 4, 9], dtype=np.int32)


@pytest.mark.parametrize(
    ("quality", "order"),
    [
        ([1.0, 1.0, 1.0, 1.0], [0, 3, 1, 2]),
        # q * 0.8 * 1e-6^-0.2 is 6.3 for q = 0.5; after row 1 its cluster gives 0.8 * 1^-0.2 = 0.8 at most.
        ([0.2, 1.0, 0.4, 0.5], [1, 3, 2, 0]),
    ],
)
def test_the_rows_that_add_most_information_are_taken(quality: list[float], order: list[int]) -> None:
    assert mig_rows(ROWS, CLUSTER, np.array(quality), 4).tolist() == order


def test_clusters_that_are_almost_alike_share_their_information() -> None:
    # At 10 degrees the labels share (cosine 0.985 > 0.9): after row 0 its neighbour adds less than the third cluster.
    angles = np.radians([0, 10, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = RowVectors(vectors, np.arange(3))
    assert mig_rows(rows, np.arange(3, dtype=np.int32), np.array([1.0, 0.9, 0.5]), 3).tolist() == [0, 2, 1]
