"""Greedy selection of the row with the largest gain, again and again, without a look at all rows each time.

Gains only fall as rows are added, so that a gain that was measured earlier is an upper bound (Minoux 1978, "Accelerated
greedy algorithms for maximizing submodular set functions"). The rows with the highest bounds are measured anew, a block
at a time, and rows of the block are taken as long as the best of them beats every bound outside. The result is that of
the plain greedy algorithm; of equal gains the row with the lowest position is taken."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from codetune.selection.row_vectors import Floats, RowIndices

BLOCK_ROWS = 256


class GainBlock(Protocol):
    """Rows whose gains are at hand."""

    def gains(self, which: RowIndices | slice) -> Floats:
        """The present gains of some rows, by their positions in the block."""
        ...

    def add(self, which: int) -> None:
        """Adds a row of the block to the selection."""
        ...


class Objective(Protocol):
    """What the selection maximises. No row's gain ever grows."""

    def block(self, rows: RowIndices) -> GainBlock: ...


def lazy_greedy(objective: Objective, rows: int, quota: int) -> RowIndices:
    """The positions of `quota` of `rows` rows in the order in which they were taken."""
    taken: list[int] = []
    with threadpool_limits(1):
        starts = range(0, rows, BLOCK_ROWS)
        blocks = (np.arange(first, min(first + BLOCK_ROWS, rows)) for first in starts)
        bounds = np.concatenate([np.empty(0), *(objective.block(block).gains(slice(None)) for block in blocks)])
        while len(taken) < quota:
            candidates, rival = _highest(bounds)
            block = objective.block(candidates)
            gains = block.gains(slice(None))
            taken += _take_while_best(block, candidates, gains, rival, quota - len(taken))
            bounds[candidates] = gains
    return np.array(taken, dtype=np.int64)


def _highest(bounds: Floats) -> tuple[RowIndices, tuple[float, int]]:
    """The rows with the highest bounds, ascending, and none that was taken; and the highest bound outside of them, with
    its negative row."""
    left = np.flatnonzero(bounds > -np.inf)
    if len(left) <= BLOCK_ROWS:
        return left, (-np.inf, 0)
    limit = np.partition(bounds, -BLOCK_ROWS)[-BLOCK_ROWS]
    above, equal = np.flatnonzero(bounds > limit), np.flatnonzero(bounds == limit)
    room = BLOCK_ROWS - len(above)
    candidates = np.sort(np.concatenate([above, equal[:room]]))
    if len(equal) > room:
        return candidates, (float(limit), -int(equal[room]))
    below = np.where(bounds < limit, bounds, -np.inf)
    return candidates, (float(below.max()), -int(np.argmax(below)))


def _take_while_best(
    block: GainBlock, candidates: RowIndices, gains: Floats, rival: tuple[float, int], most: int
) -> list[int]:
    """Takes rows of a block while their gain beats the rival outside. `gains` are kept as bounds, minus infinity for a
    row that was taken."""
    taken: list[int] = []
    is_stale = np.zeros(len(gains), dtype=np.bool_)
    while len(taken) < most:
        best = _best_of(block, gains, is_stale)
        if gains[best] == -np.inf or (gains[best], -int(candidates[best])) < rival:
            break
        taken.append(int(candidates[best]))
        block.add(best)
        gains[best] = -np.inf
        is_stale = gains > -np.inf
    return taken


def _best_of(block: GainBlock, gains: Floats, is_stale: NDArray[np.bool_]) -> int:
    """The row with the highest gain; only rows whose bounds reach it are measured."""
    best = int(np.argmax(gains))
    if is_stale[best]:
        gains[best] = block.gains(slice(best, best + 1))[0]
        is_stale[best] = False
        doubtful = np.flatnonzero(is_stale & (gains >= gains[best]))
        gains[doubtful] = block.gains(doubtful)
        is_stale[doubtful] = False
        best = int(np.argmax(gains))
    return best
