"""Vectors of a selection -> NovelSum (Yang et al. 2025, arXiv 2502.17184): how much new each row adds to the others.

The novelty of a row is the mean of its cosine distances to the rows of the selection, the nearer ones weighted more,
times the square root of the density of all rows around it. docs/method.md, section 1, has the formula. Of large sets a
fixed sample is measured. A figure for comparison: it grows with the diversity of a selection, and has no unit.

Axes: M measured rows, S rows of the selection, R reference rows, D dimensions."""

from __future__ import annotations

import numpy as np

from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, Vectors, map_in_threads, spread_sample

NEIGHBOURS, DENSITY_POWER, REGULARIZATION = 10, 0.5, 1e-9  # as in the authors' script
REFERENCE_ROWS = 10_000  # of all rows, for the density
SELECTION_ROWS = 40_000  # of the selection, to which distances are measured
MEASURED_ROWS = 2_000  # of these, whose novelty is measured
CHUNK_ROWS = 32  # measured at once by a thread: 5 MB of distances
SAME = 1e-6  # a cosine distance below it is rounding: the vectors are equal


def novelsum(vectors: RowVectors, rows: RowIndices) -> float | None:
    """NovelSum of `rows` among all rows of `vectors`; None for fewer than two rows."""
    if len(rows) < 2:
        return None
    reference = vectors.take(spread_sample(len(vectors), REFERENCE_ROWS))  # [R, D]
    selection = vectors.take(rows[spread_sample(len(rows), SELECTION_ROWS)])  # [S, D]
    measured = selection[spread_sample(len(selection), MEASURED_ROWS)]  # [M, D]
    weights = 1 / np.arange(1, len(selection) + 1)  # by rank of distance; the row itself is the first
    shares = (weights / weights.sum()).astype(np.float32)

    def novelty(first: int) -> Floats:
        chunk = measured[first : first + CHUNK_ROWS]
        distances = _distances(chunk, selection)
        distances.sort(axis=1)
        mean_distances: Floats = (distances @ shares).astype(np.float64)
        return np.power(_density(chunk, reference), DENSITY_POWER) * mean_distances

    return float(np.concatenate(list(map_in_threads(novelty, range(0, len(measured), CHUNK_ROWS)))).mean())


def _density(rows: Vectors, reference: Vectors) -> Floats:
    """One over the mean squared distance to the nearest other vectors of the reference, for each row."""
    distances = _distances(rows, reference)
    distances[distances == 0] = np.inf
    count = min(NEIGHBOURS, distances.shape[1])
    distances.partition(count - 1, axis=1)
    nearest = distances[:, :count].astype(np.float64)
    is_other = np.isfinite(nearest)
    means = np.where(is_other, 2 * nearest, 0).sum(axis=1) / np.maximum(1, is_other.sum(axis=1))
    density: Floats = 1 / (means + REGULARIZATION)
    return density


def _distances(rows: Vectors, others: Vectors) -> Vectors:
    """Cosine distances of unit vectors: [rows, others]."""
    distances: Vectors = rows @ others.T
    np.subtract(1, distances, out=distances)
    distances[distances < SAME] = 0
    return distances
