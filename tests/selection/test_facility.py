"""Facility location with quality, by hand; and with a sample as references."""

from __future__ import annotations

import numpy as np
import pytest

from codetune.selection import facility
from codetune.selection.facility import facility_rows
from codetune.selection.row_vectors import RowVectors

# Three equal rows, and one that is like none of them.
ROWS = RowVectors(np.eye(2, dtype=np.float32)[[0, 0, 0, 1]], np.arange(4))


def test_a_row_that_stands_for_many_comes_first_then_what_it_does_not_stand_for() -> None:
    # Gains 0.9 * 3/4 + 0.1 q and 0.9 * 1/4 + 0.1 q; after row 0 its equals add 0.1 q.
    assert facility_rows(ROWS, np.array([0.5, 0.5, 0.5, 0.5]), 3).tolist() == [0, 3, 1]


def test_of_rows_that_stand_for_the_same_the_better_one_is_taken() -> None:
    assert facility_rows(ROWS, np.array([0.25, 0.5, 0.75, 1.0]), 4).tolist() == [2, 3, 1, 0]


def test_opposite_rows_do_not_count_against_each_other() -> None:
    # Gains 0.9 * 1/2 each; the similarity of -1 is worth 0, not less.
    opposite = RowVectors(np.array([[1, 0], [-1, 0]], dtype=np.float32), np.arange(2))
    assert facility_rows(opposite, np.zeros(2), 2).tolist() == [0, 1]


def test_references_of_a_large_set_are_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facility, "REFERENCES", 2)
    # Rows 0 and 2 are the references: row 3 stands for neither, and has its quality only.
    assert facility_rows(ROWS, np.array([0.5, 0.5, 0.5, 1.0]), 2).tolist() == [0, 3]
