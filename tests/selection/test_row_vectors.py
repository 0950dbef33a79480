"""Vectors of rows by id, whatever their order in the file."""

from __future__ import annotations

import numpy as np
import pytest

from codetune.selection import row_vectors
from codetune.selection.row_vectors import RowVectors, lowest_of_equal_rows, map_in_threads, spread_sample


def test_rows_are_read_by_their_position_among_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_vectors, "CHUNK_ROWS", 2)
    rows = RowVectors(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([2, 0, 3]))
    assert rows.take(np.array([0, 2])).tolist() == [[4, 5], [6, 7]]
    assert [chunk.tolist() for chunk in rows.chunks()] == [[[4, 5], [0, 1]], [[6, 7]]]
    assert rows.subset(np.array([1, 2])).take(slice(None)).tolist() == [[0, 1], [6, 7]]


@pytest.mark.parametrize(
    ("rows", "sample"), [(3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 2, 4]), (9, [0, 3, 6]), (0, [])]
)
def test_a_sample_of_four_rows_at_most_is_spread_evenly(rows: int, sample: list[int]) -> None:
    assert spread_sample(rows, 4).tolist() == sample


def test_of_equal_rows_those_at_the_lowest_positions_are_taken() -> None:
    # Rows 0, 2 and 3 are equal, but for the value of row 2; so are rows 1 and 4.
    stored = np.array([[1, 0], [0, 1]], dtype=np.float32)
    rows, chosen = RowVectors(stored, np.array([0, 1, 0, 0, 1])), np.array([3, 4])
    values = np.array([0.5, 0.1, 0.7, 0.5, 0.1])
    assert sorted(lowest_of_equal_rows(rows, chosen).tolist()) == [0, 1]
    assert sorted(lowest_of_equal_rows(rows, np.array([3, 2])).tolist()) == [0, 2]
    assert sorted(lowest_of_equal_rows(rows, np.array([3, 2, 4]), values).tolist()) == [0, 1, 2]
    assert lowest_of_equal_rows(rows, np.empty(0, dtype=np.int64), values).tolist() == []


def test_results_of_threads_come_in_order() -> None:
    assert list(map_in_threads(lambda number: number * number, range(20))) == [n * n for n in range(20)]
