"""K-means: finds groups that are there, in the same bytes every time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from codetune.errors import InputError
from codetune.selection import cluster
from codetune.selection.cluster import choose_cluster_count, cluster_rows


def three_groups() -> NDArray[np.float32]:
    dice = np.random.default_rng(0)
    vectors = np.repeat(np.eye(3, 8), 20, axis=0) + 0.05 * dice.standard_normal((60, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_groups_that_are_there_are_found() -> None:
    labels = cluster_rows(three_groups(), 3, 42)
    assert labels.dtype == np.int32
    groups = labels.reshape(3, 20)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 3


def test_the_labels_are_the_same_every_time_and_from_a_mapped_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    first = cluster_rows(vectors, 10, 42)
    assert first.tobytes() == cluster_rows(vectors, 10, 42).tobytes()
    assert first.tobytes() == cluster_rows(np.load(tmp_path / "vectors.npy", mmap_mode="r"), 10, 42).tobytes()


def test_equal_rows_share_a_label_and_leave_others_unused() -> None:
    labels = cluster_rows(np.ones((4, 2), dtype=np.float32), 3, 42)
    assert len(set(labels.tolist())) == 1


def test_more_clusters_than_rows_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"select\.clusters is 10, the embeddings have 3 rows"):
        cluster_rows(np.eye(3, dtype=np.float32), 10, 42)


def groups(count: int, rows: int) -> NDArray[np.float32]:
    """Rows of some groups at random, with noise."""
    random = np.random.default_rng(count)
    centers = random.standard_normal((count, 24))
    vectors = centers[random.integers(0, count, rows)] + 0.6 * random.standard_normal((rows, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def inertia(vectors: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    parts = (vectors[labels == label].astype(np.float64) for label in np.unique(labels))
    return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in parts)


def test_the_published_sets_are_clustered_as_published() -> None:
    vectors = groups(6, 400)
    published = KMeans(n_clusters=10, n_init=10, random_state=42).fit_predict(vectors)
    assert cluster_rows(vectors.copy(), 10, 42).tobytes() == published.astype(np.int32).tobytes()


@pytest.mark.parametrize("count", [4, 25])
def test_a_large_set_is_clustered_as_well_as_by_all_its_rows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = groups(count, 3000)
    whole = inertia(vectors, cluster_rows(vectors.copy(), count, 42))
    for name, value in {"WHOLE_ROWS": 1000, "SAMPLE_ROWS": 800, "CHUNK_ROWS": 256}.items():
        monkeypatch.setattr(cluster, name, value)
    labels = cluster_rows(vectors, count, 42)
    assert labels.dtype == np.int32
    assert inertia(vectors, labels) < 1.01 * whole
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert cluster_rows(vectors, count, 42).tobytes() == labels.tobytes()


@pytest.mark.parametrize("count", [2, 5, 12])
def test_auto_finds_the_number_of_groups_that_are_there(count: int) -> None:
    assert choose_cluster_count(groups(count, 300), 42) == count


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_auto_makes_one_cluster_of_rows_that_nothing_separates(rows: int) -> None:
    assert set(cluster_rows(np.ones((rows, 4), dtype=np.float32), "auto", 42).tolist()) == {0}
