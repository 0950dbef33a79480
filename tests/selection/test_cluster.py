"""K-means: finds groups that are there, in the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codetune.errors import InputError
from codetune.selection.cluster import cluster_rows


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
