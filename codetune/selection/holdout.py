"""The rows that are held out of selection and training: a random draw, by digests of seed and content, of whole groups
of rows that repeat each other. So no row on one side repeats a row on the other, and neither the order of the data set
nor the strategy changes the draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import draw_numbers
from codetune.errors import DataError


def holdout_size(holdout: float, rows: int) -> int:
    """The number of rows to hold out of `rows`, by `train.holdout`: a number, or a share of all, rounded down. Raises
    DataError where that is none, or leaves none to train on."""
    size = int(rows * holdout) if isinstance(holdout, float) else holdout
    if size >= rows:
        raise DataError(
            f"train.holdout is {holdout:,}, and the data set has {rows:,} usable rows. Expected: fewer, so that rows "
            "are left to train on. Lower train.holdout, or add rows to the data set"
        )
    if holdout and not size:
        raise DataError(
            f"train.holdout is {holdout:g}, which is no row of {rows:,}. Expected: one at least. Raise train.holdout"
        )
    return size


def draw_holdout(ids: NDArray[np.uint64], group: NDArray[np.int64], size: int, seed: int) -> NDArray[np.uint64]:
    """The held-out rows of `ids`, at most `size`, in the order of `ids`. `group` has the first row of each row's group.
    Groups are drawn in the order of the digests of their first rows; one that has more rows than are still wanted is
    left out. Raises DataError where every group has more rows than `size`."""
    firsts, group_of, rows = np.unique(group, return_inverse=True, return_counts=True)
    is_drawn = np.zeros(len(firsts), dtype=np.bool_)
    wanted = size
    for at in np.argsort(draw_numbers(ids[firsts], f"holdout {seed}"), kind="stable").tolist():
        if rows[at] <= wanted:
            is_drawn[at] = True
            wanted -= int(rows[at])
    if wanted == size:
        raise DataError(
            f"train.holdout wants {size:,} of {len(ids):,} rows, and every row is one of {int(rows.min()):,} or more "
            "that repeat each other, which are never divided. Expected: more rows, or a data set with fewer repeats. "
            "Raise train.holdout"
        )
    return ids[is_drawn[group_of]]
