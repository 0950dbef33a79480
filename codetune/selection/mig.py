"""Vectors, clusters and quality -> rows with the most information: MIG (Chen et al. 2025, arXiv 2504.13835), with
clusters in the place of its tags.

A row has a share in every label: the softmax of its similarities to the centroids, times its quality, part of which
goes over to labels that are similar. What a label holds counts with falling return, so that labels with few rows are
filled first. The temperature is ours: without it the shares of ten clusters are almost equal, and quality alone counts.

Axes: N rows, K labels, D dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codetune.selection.lazy_greedy import lazy_greedy
from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, Vectors

TEMPERATURE = 0.07
POWER = 0.8  # of the information in a label
OFFSET = 1e-6  # so that the derivative of an empty label is finite
SIMILAR_LABELS = 0.9  # labels share information from this similarity on
DIGITS = 6  # of shares; float32 sums of equal rows differ beyond


def mig_rows(vectors: RowVectors, cluster: NDArray[np.int32], quality: Floats, quota: int) -> RowIndices:
    """The positions of `quota` rows in the order in which they were taken. `quality` is from 0 to 1 for each row."""
    return lazy_greedy(_Information(_information(vectors, cluster, quality)), len(vectors), quota)


class _Information:
    def __init__(self, rows: Vectors) -> None:
        self.rows = rows  # [N, K]
        self.labels = np.zeros(rows.shape[1])  # [K], what the taken rows hold together

    def block(self, rows: RowIndices) -> _InformationGains:
        return _InformationGains(self, self.rows[rows])


class _InformationGains:
    def __init__(self, information: _Information, rows: Vectors) -> None:
        self._information, self._rows = information, rows  # [M, K]

    def gains(self, which: RowIndices | slice) -> Floats:
        slope = POWER * (self._information.labels + OFFSET) ** (POWER - 1)
        # Not a matrix product: its last bits depend on the number of rows, and equal rows must tie.
        gains: Floats = (self._rows[which] * slope).sum(axis=1)
        return gains

    def add(self, which: int) -> None:
        self._information.labels += self._rows[which]


def _information(vectors: RowVectors, cluster: NDArray[np.int32], quality: Floats) -> Vectors:
    """What each row adds to each label: [N, K]."""
    centroids = _centroids(vectors, cluster)
    shared, first = _shared_labels(centroids), 0
    information = np.empty((len(vectors), len(centroids)), dtype=np.float32)
    for chunk in vectors.chunks():
        rows = slice(first, first := first + len(chunk))
        shares = np.round(_softmax(chunk @ centroids.T / TEMPERATURE) @ shared, DIGITS)
        information[rows] = quality[rows, None] * shares
    return information


def _centroids(vectors: RowVectors, cluster: NDArray[np.int32]) -> Vectors:
    """The mean direction of each cluster that has rows: [K, D]."""
    labels, index = np.unique(cluster, return_inverse=True)
    sums, first = np.zeros((len(labels), vectors.stored.shape[1])), 0
    for chunk in vectors.chunks():
        members = index[first : first + len(chunk)] == np.arange(len(labels))[:, None]  # [K, rows of the chunk]
        sums, first = sums + members.astype(np.float32) @ chunk, first + len(chunk)
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    centroids: Vectors = (sums / lengths).astype(np.float32)
    return centroids


def _shared_labels(centroids: Vectors) -> Floats:
    """How the information of a label spreads over the labels: [K, K], rows of sum 1."""
    similar = np.round(centroids @ centroids.T, DIGITS).astype(np.float64)
    similar[similar < SIMILAR_LABELS] = 0
    np.fill_diagonal(similar, 1)
    shared: Floats = similar / similar.sum(axis=1, keepdims=True)
    return shared


def _softmax(logits: Vectors) -> Floats:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares
