"""K-means: the labels of scikit-learn's, whatever the number of threads."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from codetune.selection import kmeans
from codetune.selection.kmeans import fit_clusters


def vectors_in_groups(groups: int, rows: int, dimensions: int, noise: float) -> NDArray[np.float32]:
    random = np.random.default_rng(groups)
    vectors = random.standard_normal((groups, dimensions))[random.integers(0, groups, rows)]
    vectors += noise * random.standard_normal((rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("groups", "rows", "dimensions", "noise", "count", "starts"),
    [
        (4, 700, 24, 0.5, 10, 10),
        (3, 60, 8, 0.05, 3, 10),
        (1, 40, 4, 1.0, 40, 2),
        (5, 5000, 16, 0.3, 25, 1),
        (2, 9, 3, 0.2, 1, 3),
    ],
)
def test_the_labels_are_those_of_scikit_learn(
    groups: int, rows: int, dimensions: int, noise: float, count: int, starts: int
) -> None:
    vectors = vectors_in_groups(groups, rows, dimensions, noise)
    with threadpool_limits(1):
        published = KMeans(count, n_init=starts, random_state=42).fit(vectors)
    found = fit_clusters(vectors, count, starts, 42)
    assert found.labels.tobytes() == published.labels_.tobytes()
    assert found.centroids.tobytes() == published.cluster_centers_.tobytes()


def test_the_number_of_processors_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_in_groups(6, 900, 12, 0.7)
    monkeypatch.setattr(kmeans, "CHUNK_ROWS", 100)
    results = set()
    for processors in ({0}, {0, 1, 2, 3, 4}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, found=processors: found)
        results.add(fit_clusters(vectors, 8, 6, 7).centroids.tobytes())
    assert len(results) == 1


def test_a_start_that_only_renames_the_clusters_changes_no_label() -> None:
    vectors = vectors_in_groups(3, 90, 8, 0.01)
    first, all_starts = (fit_clusters(vectors, 3, starts, 42) for starts in (1, 10))
    assert first.labels.tobytes() == all_starts.labels.tobytes()
