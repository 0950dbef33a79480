"""Vectors -> clusters by K-means, with the labels of scikit-learn's `KMeans(n_init=starts)` on one thread, faster.

What scikit-learn does one start after another is done for several at once: k-means++ (Arthur and Vassilvitskii 2007)
reads the vectors once for all candidates of some starts, and each start has a thread for its rounds of Lloyd's
algorithm (1982), which are scikit-learn's own. Within a start every sum has one order, so the number of threads changes
no bit.

Axes: N rows, K clusters, D dimensions, S starts, T trials for each centroid of a start."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster._kmeans import _kmeans_single_lloyd  # 1.8 and 1.9; KMeans would copy the vectors for each thread

from codetune.selection.row_vectors import CHUNK_ROWS, Floats, Vectors, threads

MOST_ROUNDS, TOLERANCE = 300, 1e-4  # scikit-learn's defaults; the tolerance is of the mean variance of a dimension
STARTS_AT_ONCE = 4  # in k-means++: a pass over the vectors for all of them, with 4 bytes a row and candidate
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
    """The rows [S, K] that k-means++ chooses for each start. Draws and sums are those of
    `sklearn.cluster.kmeans_plusplus` since 1.8, which adds the distances up in float32."""
    rows, trials = len(centered), 2 + int(np.log(count))
    drawn = [
        (random.choice(rows, p=np.full(rows, 1 / rows, dtype=centered.dtype)), random.uniform(size=(count - 1, trials)))
        for _ in range(starts)
    ]
    parts = (drawn[first : first + STARTS_AT_ONCE] for first in range(0, starts, STARTS_AT_ONCE))
    return np.concatenate([_choose_rows(pool, centered, part) for part in parts])


def _choose_rows(pool: ThreadPoolExecutor, centered: Vectors, drawn: Sequence[tuple[int, Floats]]) -> NDArray[np.int64]:
    """The rows [S, K] of all starts, from the first row of each and the draws [K - 1, T] of the others: of T
    candidates, drawn in proportion to their squared distances, the one that leaves the smallest sum."""
    chosen = np.array([[first] * (len(draws) + 1) for first, draws in drawn])
    weights = np.ones(len(centered), dtype=centered.dtype)
    nearest = _squared_distances(pool, centered, chosen[:, 0])  # [S, N]
    sums = [row[None] @ weights for row in nearest]
    for position in range(1, chosen.shape[1]):
        candidates = np.array(
            [
                np.searchsorted(np.cumsum(row), draws[position - 1] * total)
                for row, total, (_, draws) in zip(nearest, sums, drawn, strict=True)
            ]
        ).clip(max=len(centered) - 1)  # [S, T]
        distances = _squared_distances(pool, centered, candidates.ravel()).reshape(*candidates.shape, -1)
        for start, left in enumerate(distances):  # [T, N]
            np.minimum(nearest[start], left, out=left)
            totals = left @ weights[:, None]
            best = int(np.argmin(totals))
            chosen[start, position] = candidates[start, best]
            nearest[start], sums[start] = left[best], totals[best]
    return chosen


def _squared_distances(pool: ThreadPoolExecutor, centered: Vectors, rows: NDArray[np.int64]) -> Vectors:
    """The squared distances of every row to each of `rows`, in double precision and then rounded: [len(rows), N]."""
    wanted: Floats = centered[rows].astype(np.float64)
    squares = np.einsum("rd,rd->r", wanted, wanted)[:, None]
    distances = np.empty((len(rows), len(centered)), dtype=centered.dtype)

    def fill(first: int) -> None:
        chunk = centered[first : first + CHUNK_ROWS].astype(np.float64)
        found = wanted @ chunk.T
        found *= -2
        found += squares
        found += np.einsum("nd,nd->n", chunk, chunk)
        distances[:, first : first + CHUNK_ROWS] = np.maximum(found, 0, out=found)

    list(pool.map(fill, range(0, len(centered), CHUNK_ROWS)))
    return distances
