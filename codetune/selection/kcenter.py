"""Vectors -> rows that leave no row far away: k-center by farthest-first traversal (Gonzalez 1985; for training sets
Sener and Savarese 2018, arXiv 1708.00489).

The first row is the nearest to the mean; then again and again the row that is farthest from all that were taken. A
larger quota contains the smaller selection. Outliers are taken early: nothing here asks how good a row is."""

from __future__ import annotations

import numpy as np

from codetune.selection.lazy_greedy import lazy_greedy
from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, Vectors

TAKEN_AT_ONCE = 256  # rows that others are compared with in one product
DIGITS = 6  # of distances; float32 sums of equal rows differ beyond


def kcenter_rows(vectors: RowVectors, quota: int) -> RowIndices:
    """The positions of `quota` rows in the order of the traversal."""
    return lazy_greedy(_FarthestFirst(vectors), len(vectors), quota)


class _FarthestFirst:
    """The gain of a row is its squared distance to the nearest row that was taken."""

    def __init__(self, vectors: RowVectors) -> None:
        self.vectors, self.taken = vectors, np.empty(0, dtype=np.int64)
        self.nearest = np.full(len(vectors), -1, dtype=np.float32)  # highest similarity to a row that was taken
        self.compared = np.zeros(len(vectors), dtype=np.int64)  # the number of taken rows that it knows of
        self.mean = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in vectors.chunks()) / max(1, len(vectors))

    def block(self, rows: RowIndices) -> _Distances:
        return _Distances(self, rows)

    def compare(self, rows: RowIndices, vectors: Vectors) -> None:
        """Compares rows with those that were taken since their last comparison."""
        whole_parts = int(self.compared[rows].min(initial=len(self.taken))) // TAKEN_AT_ONCE * TAKEN_AT_ONCE
        for first in range(whole_parts, len(self.taken), TAKEN_AT_ONCE):
            part = self.taken[first : first + TAKEN_AT_ONCE]
            behind = np.flatnonzero(self.compared[rows] < first + len(part))
            found = (vectors[behind] @ self.vectors.take(part).T).max(axis=1)
            self.nearest[rows[behind]] = np.maximum(self.nearest[rows[behind]], found)
        self.compared[rows] = len(self.taken)


class _Distances:
    def __init__(self, traversal: _FarthestFirst, rows: RowIndices) -> None:
        self._traversal, self._rows, self._vectors = traversal, rows, traversal.vectors.take(rows)
        traversal.compare(rows, self._vectors)

    def gains(self, which: RowIndices | slice) -> Floats:
        traversal = self._traversal
        if len(traversal.taken):
            gains = 2 - 2 * traversal.nearest[self._rows[which]].astype(np.float64)
        else:  # the nearest to the mean comes first; above every distance, so that gains only fall
            gains = 6 + self._vectors[which] @ traversal.mean
        rounded: Floats = np.round(gains, DIGITS)
        return rounded

    def add(self, which: int) -> None:
        traversal, rows = self._traversal, self._rows
        found = self._vectors @ self._vectors[which]
        traversal.taken = np.append(traversal.taken, rows[which])
        traversal.nearest[rows] = np.maximum(traversal.nearest[rows], found)
        traversal.compared[rows] = len(traversal.taken)
