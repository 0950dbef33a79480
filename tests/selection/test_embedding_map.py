"""The map of the embeddings: the plane of largest variance, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from codetune.selection import embedding_map as module
from codetune.selection.embedding_map import map_embeddings
from codetune.selection.row_vectors import RowVectors


def rows_of(vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> RowVectors:
    return RowVectors(vectors.astype(np.float32), np.arange(len(vectors)))


def test_the_axes_are_those_of_the_largest_variance() -> None:
    # Along the third axis -3 and 3, along the first -1 and 1: sums of squares 18 and 2, shares 0.9 and 0.1.
    vectors = np.array([[0.0, 5.0, 3.0], [0.0, 5.0, -3.0], [1.0, 5.0, 0.0], [-1.0, 5.0, 0.0]])
    found = map_embeddings(rows_of(vectors))
    assert found.points == pytest.approx(vectors[:, [2, 0]], abs=1e-12)
    assert found.variance == pytest.approx((0.9, 0.1))
    assert found.rows.tolist() == [0, 1, 2, 3]


def test_of_many_rows_a_fixed_sample_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_ROWS", 5)
    vectors = rows_of(np.random.default_rng(1).standard_normal((20, 6)))
    found, again = map_embeddings(vectors), map_embeddings(vectors)
    assert found.rows.tolist() == [0, 4, 8, 12, 16]
    assert np.array_equal(found.points, again.points)


@pytest.mark.parametrize("vectors", [np.ones((4, 3)), np.ones((1, 3)), np.ones((2, 1))])
def test_equal_rows_lie_on_one_point(vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    found = map_embeddings(rows_of(vectors))
    assert found.points.shape == (len(vectors), 2)
    assert np.abs(found.points).max() < 1e-12
    assert found.variance is None
