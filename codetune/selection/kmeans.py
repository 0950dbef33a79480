"""Vectors -> clusters by K-means, with the labels of scikit-learn's `KMeans(n_init=starts)` on one thread, faster.

What scikit-learn does one start after another is done for all starts at once: k-means++ (Arthur and Vassilvitskii 2007)
reads the vectors once for all candidates of all starts, and each start has a thread for its rounds of Lloyd's algorithm
(1982), which are scikit-learn's own. Within a start every sum has one order, so the number of threads changes no bit.

Axes: N rows, K clusters, D dimensions, S starts, T trials for each centroid of a start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster._kmeans import _kmeans_single_lloyd  # 1.5 to 1.9; KMeans would copy the vectors for each thread

from codetune.selection.row_vectors import CHUNK_ROWS, Floats, Vectors, threads

MOST_ROUNDS, TOLERANCE = 300, 1e-4  # scikit-learn's defaults; the tolerance is of the mean variance of a dimension
Labels = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Clusters:
    labels: Labels  # [N]
    centroids: Vectors  # [K, D]


def fit_clusters(vectors: Vectors, count: int, starts: int, seed: int) -> Clusters:
    """The clusters of the start with the smallest sum of squared distances: [N, D] -> K clusters. Holds one copy of the
    vectors. Labels stay unused where fewer vectors are distinct."""
    tolerance = np.mean(np.var(vectors, axis=0)) * TOLERANCE
    mean = vectors.mean(axis=0)
    centered = np.asarray(vectors - mean)
    best, least = None, np.inf
    with threads() as pool:
        chosen = _starting_rows(pool, centered, count, starts, np.random.RandomState(seed))
        for labels, inertia, centroids in pool.map(partial(_lloyd, centered, tolerance), chosen):
            if best is None or (inertia < least and not _is_renamed(labels, best.labels)):
                best, least = Clusters(labels, centroids + mean), inertia
    assert best is not None
    return best


def _lloyd(centered: Vectors, tolerance: np.float32, rows: NDArray[np.int64]) -> tuple[Labels, float, Vectors]:
    """Labels, sum of squared distances and centroids after the rounds of a start from these rows."""
    labels, inertia, centroids, _ = _kmeans_single_lloyd(
        centered, np.ones(len(centered), dtype=centered.dtype), centered[rows], MOST_ROUNDS, tol=tolerance, n_threads=1
    )
    return labels, float(inertia), centroids


def _is_renamed(labels: Labels, others: Labels) -> bool:
    """Whether rows with one label have one label in `others` as well: then a smaller sum is rounding."""
    pairs = np.unique(labels.astype(np.int64) * (int(others.max()) + 1) + others)
    return len(pairs) == len(np.unique(labels))


def _starting_rows(
    pool: ThreadPoolExecutor, centered: Vectors, count: int, starts: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """The rows [S, K] that k-means++ chooses for each start: of T candidates, drawn in proportion to their squared
    distances, the one that leaves the smallest sum. Draws and sums are those of `sklearn.cluster.kmeans_plusplus` since
    1.8, which adds the distances up in float32."""
    trials = 2 + int(np.log(count))
    weights = np.ones(len(centered), dtype=centered.dtype)
    drawn = [
        (random.choice(len(centered), p=weights / weights.sum()), random.uniform(size=(count - 1, trials)))
        for _ in range(starts)
    ]
    chosen = np.array([[first] * count for first, _ in drawn])
    nearest = [row[None] for row in _squared_distances(pool, centered, chosen[:, 0])]  # S of [1, N]
    sums = [row @ weights for row in nearest]
    for position in range(1, count):
        candidates = np.array(
            [
                np.searchsorted(np.cumsum(row), shares[position - 1] * total)
                for row, total, (_, shares) in zip(nearest, sums, drawn, strict=True)
            ]
        ).clip(max=len(centered) - 1)  # [S, T]
        distances = _squared_distances(pool, centered, candidates.ravel()).reshape(starts, trials, -1)
        for start in range(starts):
            left = np.minimum(nearest[start], distances[start])  # [T, N]
            totals = left @ weights[:, None]
            best = int(np.argmin(totals))
            chosen[start, position] = candidates[start, best]
            nearest[start], sums[start] = left[best : best + 1], totals[best]
    return chosen


def _squared_distances(pool: ThreadPoolExecutor, centered: Vectors, rows: NDArray[np.int64]) -> Vectors:
    """Of every row to each of `rows`, in double precision and then rounded: [len(rows), N]."""
    wanted: Floats = centered[rows].astype(np.float64)
    squares = np.einsum("rd,rd->r", wanted, wanted)[:, None]

    def of_chunk(first: int) -> Vectors:
        chunk = centered[first : first + CHUNK_ROWS].astype(np.float64)
        found = -2 * (wanted @ chunk.T) + squares + np.einsum("nd,nd->n", chunk, chunk)
        rounded: Vectors = np.maximum(found, 0).astype(centered.dtype)
        return rounded

    return np.concatenate(list(pool.map(of_chunk, range(0, len(centered), CHUNK_ROWS))), axis=1)
