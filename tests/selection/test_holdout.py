"""The draw of held-out rows, and the groups of rows that repeat each other."""

from __future__ import annotations

import random
from tempfile import TemporaryFile

import numpy as np
import pytest

from codetune.data.ids import pack_ids
from codetune.errors import DataError
from codetune.records import Example
from codetune.selection.duplicates import LEAST_JACCARD, group_repeats, similarity
from codetune.selection.holdout import draw_holdout, holdout_size
from tests.selection.test_duplicates import rows_of, text


def groups(rows: list[Example]) -> list[set[int]]:
    by_id = {row.id: row for row in rows}
    with TemporaryFile() as file:
        ids, group = group_repeats(rows, by_id.__getitem__, file)
    return [set(ids[group == first].tolist()) for first in np.unique(group)]


def test_rows_that_others_connect_are_in_one_group() -> None:
    # 1 and 3 differ in 16 words of 100 and are no near duplicates, but 2 is one of both. 5 and 6 differ in white space.
    rows = rows_of(text(0), text(8), text(16), "something else", "x = 1  # one", "x = 1 # one")
    assert similarity(rows[0], rows[2]) < LEAST_JACCARD
    assert groups(rows) == [{1, 2, 3}, {4}, {5, 6}]
    assert groups(random.Random(0).sample(rows, len(rows))) == groups(rows)


def drawn(sizes: list[int], size: int, seed: int = 0) -> list[int]:
    """The rows that are held out, where the rows 0, 1, ... are in groups of these sizes."""
    group = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    ids = pack_ids(f"{row:016x}" for row in range(len(group)))
    return draw_holdout(ids, group, size, seed).tolist()


def test_a_group_is_held_out_as_a_whole_or_not_at_all() -> None:
    for seed in range(20):
        held = set(drawn([3, 2, 4, 1, 1, 1], 4, seed))
        assert len(held) == 4
        assert all(part <= held or not part & held for part in ({0, 1, 2}, {3, 4}, {5, 6, 7, 8}))


def test_a_group_that_is_larger_than_what_is_wanted_is_left_out() -> None:
    assert sorted(drawn([50, 1, 1], 2)) == [50, 51]
    with pytest.raises(DataError, match=r"wants 2 of 8 rows, and every row is one of 3 or more .* Raise train.holdout"):
        drawn([3, 5], 2)


def test_the_draw_follows_from_seed_and_content() -> None:
    assert drawn([1] * 50, 10) == drawn([1] * 50, 10) != drawn([1] * 50, 10, seed=1)
    assert set(drawn([1] * 50, 10)) < set(drawn([1] * 50, 11))


@pytest.mark.parametrize(("holdout", "size"), [(0, 0), (7, 7), (9, 9), (0.25, 2), (0.1, 1)])
def test_the_size_is_a_number_or_a_share_of_all_rows(holdout: float, size: int) -> None:
    assert holdout_size(holdout, 10) == size


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (10, r"train.holdout is 10, and the data set has 10 usable rows. Expected: fewer"),
        (0.09, r"train.holdout is 0.09, which is no row of 10. Expected: one at least. Raise train.holdout"),
    ],
)
def test_a_holdout_of_all_rows_or_of_none_is_an_error(holdout: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        holdout_size(holdout, 10)
