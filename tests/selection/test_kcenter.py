"""Farthest-first traversal, by hand."""

from __future__ import annotations

import numpy as np

from codetune.selection.kcenter import kcenter_rows
from codetune.selection.row_vectors import RowVectors


def on_a_circle(*degrees: float) -> RowVectors:
    angles = np.radians(degrees)
    return RowVectors(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), np.arange(len(degrees)))


def test_the_first_row_is_nearest_to_the_mean_and_each_next_one_farthest_from_all() -> None:
    # The mean lies at 30.3 degrees: 20 first; 190 is 170 away from it, then 50 is 30 away and 0 is 20 away.
    assert kcenter_rows(on_a_circle(0, 20, 50, 190), 4).tolist() == [1, 3, 2, 0]


def test_of_rows_that_are_equally_far_the_lowest_is_taken() -> None:
    assert kcenter_rows(on_a_circle(0, 90, -90, 0), 4).tolist() == [0, 1, 2, 3]
