"""Vectors and quality -> rows that stand for all rows and are good: facility location with quality (QDIT, Bukharin et
al. 2024, arXiv 2311.14736).

Each reference row is worth its similarity to the most similar row that was taken. Greedily the row is added that raises
the weighted sum of the mean worth and its own quality most. All rows are references up to `REFERENCES`; of larger sets
a sample is. Similarities are computed a block at a time: never N x N in memory.

Axes: M rows of a block, R references, D dimensions."""

from __future__ import annotations

import numpy as np

from codetune.selection.lazy_greedy import lazy_greedy
from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, Vectors, spread_sample

REFERENCES = 10_000
DIVERSITY = 0.9  # weight of the mean similarity; quality has the rest
DIGITS = 9  # of gains; float32 sums of equal rows differ beyond


def facility_rows(vectors: RowVectors, quality: Floats, quota: int) -> RowIndices:
    """The positions of `quota` rows in the order in which they were taken. `quality` is from 0 to 1 for each row."""
    references = vectors.take(spread_sample(len(vectors), REFERENCES))
    return lazy_greedy(_Coverage(references, vectors, quality), len(vectors), quota)


class _Coverage:
    def __init__(self, references: Vectors, vectors: RowVectors, quality: Floats) -> None:
        self.references, self.vectors, self.quality = references, vectors, quality
        self.best = np.zeros(len(references), dtype=np.float32)  # [R]; a negative similarity is worth nothing

    def block(self, rows: RowIndices) -> _CoverageGains:
        return _CoverageGains(self, self.vectors.take(rows) @ self.references.T, self.quality[rows])


class _CoverageGains:
    def __init__(self, coverage: _Coverage, similarities: Vectors, quality: Floats) -> None:
        self._coverage, self._similarities, self._quality = coverage, similarities, quality  # [M, R], [M]

    def gains(self, which: RowIndices | slice) -> Floats:
        best = self._coverage.best
        raised = np.maximum(self._similarities[which] - best, 0).mean(axis=1, dtype=np.float64)
        gains: Floats = np.round(DIVERSITY * raised + (1 - DIVERSITY) * self._quality[which], DIGITS)
        return gains

    def add(self, which: int) -> None:
        np.maximum(self._coverage.best, self._similarities[which], out=self._coverage.best)
