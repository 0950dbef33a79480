"""Quotas: exact, within their limits, and never smaller for a larger count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.project.sections import Selection
from codetune.selection.quotas import apportion, part_quotas, quota_of


@pytest.mark.parametrize(
    ("settings", "quota"),
    [
        (Selection(ratio=0.5), 4),
        (Selection(ratio=0.5, ratio_of="all"), 5),
        (Selection(ratio=1.0, ratio_of="all"), 8),
        (Selection(count=7), 7),
    ],
)
def test_the_quota_of_8_eligible_rows_among_10(settings: Selection, quota: int) -> None:
    assert quota_of(10, 8, settings) == quota


def test_a_part_without_eligible_rows_gets_nothing() -> None:
    sizes, eligible = np.array([10, 5, 5]), np.array([8, 0, 2])
    assert part_quotas(sizes, eligible, Selection(ratio=0.5)).tolist() == [4, 0, 1]
    assert part_quotas(sizes, eligible, Selection(count=10)).tolist() == [8, 0, 2]
    # Of all rows: seats at 1/20, 3/20, ... of the first and at 1/10, 3/10 of the third
    assert part_quotas(sizes, eligible, Selection(count=3, ratio_of="all")).tolist() == [2, 0, 1]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8), st.data())
def test_seats_are_exact_within_the_limits_and_never_taken_away(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    sizes = np.array([max(part) for part in parts])
    limits = np.array([min(part) for part in parts])
    count = data.draw(st.integers(0, int(limits.sum())))
    seats = apportion(sizes, limits, count)
    assert seats.sum() == count
    assert (seats <= limits).all()
    assert (apportion(sizes, limits, count + 1) >= seats).all()
