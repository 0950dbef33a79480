"""Unit vectors -> the cluster of each row, by K-means (`kmeans.py`).

Up to `WHOLE_ROWS` rows it is K-means as published, of all rows. Of larger sets the starts run on a sample, and the best
one is refined on all rows, a chunk at a time. `auto` chooses the number of clusters by the simplified silhouette
(Hruschka et al. 2004, Vendramin et al. 2010): how much nearer rows are to their own centroid than to the next one.

Axes: N rows, K clusters, D dimensions."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from codetune.errors import InputError
from codetune.selection.kmeans import Labels, fit_clusters
from codetune.selection.row_vectors import Vectors, map_in_threads, spread_sample

STARTS = 10  # scikit-learn's default before 1.4; its default with k-means++ is one now
WHOLE_ROWS = 100_000  # the published data sets have fewer
SAMPLE_ROWS = 50_000
CHUNK_ROWS = 8192
LEAST_GAIN = 1e-4  # of the inertia; a round on all rows that lowers it by less is the last one
MOST_ROUNDS = 50
COUNTING_ROWS = 5_000  # a sample, on which the number of clusters is chosen
COUNTS = (*range(2, 21), 25, 30, 35, 40, 50, 60, 80, 100)  # of clusters that `auto` compares


def cluster_rows(vectors: Vectors, clusters: int | Literal["auto"], seed: int) -> Labels:
    """A label from 0 to K - 1 for each row: [N, D] -> [N].

    The caller sorts the rows by id, so that the order of the data set changes nothing. A label stays unused where fewer
    vectors are distinct. Raises InputError where there are more clusters than rows."""
    count = choose_cluster_count(vectors, seed) if clusters == "auto" else clusters
    if count > max(1, len(vectors)):
        raise InputError(
            f"select.clusters is {count}, the embeddings have {len(vectors)} rows. Expected: at most as many "
            f"clusters as rows. Set select.clusters to {max(1, len(vectors) // 10)}, or add rows to the data set."
        )
    if len(vectors) > WHOLE_ROWS:
        sample = vectors[spread_sample(len(vectors), SAMPLE_ROWS)]
        return _refined_labels(vectors, fit_clusters(sample, count, STARTS, seed).centroids)
    return fit_clusters(vectors, count, STARTS, seed).labels


def choose_cluster_count(vectors: Vectors, seed: int) -> int:
    """The number among `COUNTS` with the highest mean simplified silhouette on a sample of the rows; of equal ones the
    lowest, and 1 where no number of clusters separates the rows."""
    sample = np.array(vectors[spread_sample(len(vectors), COUNTING_ROWS)])
    best, highest = 1, 0.0
    for count in (count for count in COUNTS if 2 * count <= len(sample)):
        clusters = fit_clusters(sample, count, 1, seed)
        silhouette = _simplified_silhouette(euclidean_distances(sample, clusters.centroids), clusters.labels)
        if silhouette > highest + 1e-6:
            best, highest = count, silhouette
    return best


def _simplified_silhouette(distances: Vectors, labels: Labels) -> float:
    """The mean of 1 - own / next over the rows, from their distances to the centroids [N, K]. A row that is alone in
    its cluster counts 0: it says nothing."""
    own = distances[np.arange(len(labels)), labels].astype(np.float64)
    others = distances.astype(np.float64)
    others[np.arange(len(labels)), labels] = np.inf
    others[:, np.bincount(labels, minlength=distances.shape[1]) == 0] = np.inf
    following = others.min(axis=1)
    counts = np.isfinite(following) & (following > 1e-6) & (np.bincount(labels)[labels] > 1)
    return float(np.sum(1 - own[counts] / np.maximum(own, following)[counts]) / max(1, len(labels)))


def _refined_labels(vectors: Vectors, centroids: Vectors) -> Labels:
    """The labels of all rows after rounds of Lloyd's algorithm from the centroids of a start [K, D]."""
    labels = np.zeros(len(vectors), dtype=np.int32)
    before = np.inf
    for _ in range(MOST_ROUNDS):
        sums, inertia = np.zeros(centroids.shape), 0.0
        chunks = range(0, len(vectors), CHUNK_ROWS)
        for first, found in zip(chunks, map_in_threads(partial(_assign, vectors, centroids), chunks), strict=True):
            labels[first : first + CHUNK_ROWS], part, distances = found
            sums, inertia = sums + part, inertia + distances  # in the order of the rows, whichever thread was first
        if inertia > before * (1 - LEAST_GAIN):
            break
        sizes = np.bincount(labels, minlength=len(centroids))[:, None]
        centroids = np.where(sizes > 0, sums / np.maximum(sizes, 1), centroids).astype(np.float32)
        before = inertia
    return labels


def _assign(vectors: Vectors, centroids: Vectors, first: int) -> tuple[Labels, NDArray[np.float64], float]:
    """The labels of a chunk of rows, the sum of its rows in each cluster [K, D], and the sum of squared distances."""
    rows = np.array(vectors[first : first + CHUNK_ROWS])
    distances = (centroids * centroids).sum(axis=1) - 2 * (rows @ centroids.T)  # [rows, K], less the rows' own squares
    labels: Labels = np.argmin(distances, axis=1).astype(np.int32)
    members = (labels == np.arange(len(centroids), dtype=np.int32)[:, None]).astype(np.float32)
    own = distances[np.arange(len(rows)), labels].sum(dtype=np.float64)
    return labels, (members @ rows).astype(np.float64), float(own + (rows * rows).sum(dtype=np.float64))
