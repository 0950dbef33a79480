"""Lazy greedy takes the rows that a look at every gain in every step takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from codetune.selection import facility, lazy_greedy
from codetune.selection.kcenter import kcenter_rows
from codetune.selection.mig import mig_rows
from codetune.selection.row_vectors import RowVectors, Vectors

ROWS, QUOTA = 60, 25


def unit_vectors(seed: int) -> Vectors:
    """Every tenth row is equal to the row before, so that there are ties."""
    vectors = np.random.default_rng(seed).standard_normal((ROWS, 4))
    vectors[1::10] = vectors[::10]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[3, 16, 256])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(lazy_greedy, "BLOCK_ROWS", request.param)
    return int(request.param)


@pytest.mark.parametrize("seed", range(4))
def test_farthest_first_is_the_plain_traversal(seed: int, block_rows: int) -> None:
    vectors = unit_vectors(seed)
    exact = vectors.astype(np.float64)
    order = [int(np.argmax(np.round(exact @ exact.mean(axis=0), 6)))]
    for _ in range(QUOTA - 1):
        distances = np.round(2 - 2 * (exact @ exact[order].T).max(axis=1), 6)
        distances[order] = -1
        order.append(int(np.argmax(distances)))
    assert kcenter_rows(RowVectors(vectors, np.arange(ROWS)), QUOTA).tolist() == order


@pytest.mark.parametrize("seed", range(4))
def test_facility_location_is_the_plain_greedy_algorithm(seed: int, block_rows: int) -> None:
    vectors, quality = unit_vectors(seed), np.round(np.random.default_rng(seed).random(ROWS), 1)
    similarities, best, order = vectors.astype(np.float64) @ vectors.T.astype(np.float64), np.zeros(ROWS), []
    for _ in range(QUOTA):
        raised = np.maximum(similarities - best, 0).mean(axis=1)
        gains = np.round(0.9 * raised + 0.1 * quality, 7)
        gains[order] = -1
        order.append(int(np.argmax(gains)))
        best = np.maximum(best, similarities[order[-1]])
    assert facility.facility_rows(RowVectors(vectors, np.arange(ROWS)), quality, QUOTA).tolist() == order


QUALITY, CLUSTER = np.linspace(0.1, 1, ROWS), np.arange(ROWS, dtype=np.int32) % 3


@pytest.mark.parametrize("quota", [ROWS - 2, ROWS])
@pytest.mark.parametrize(
    "take",
    [
        kcenter_rows,
        lambda rows, quota: facility.facility_rows(rows, QUALITY, quota),
        lambda rows, quota: mig_rows(rows, CLUSTER, QUALITY, quota),
    ],
    ids=["kcenter", "facility", "mig"],
)
def test_no_row_is_taken_twice_where_fewer_are_left_than_a_block_has(
    take: Callable[[RowVectors, int], NDArray[np.int64]], quota: int, block_rows: int
) -> None:
    taken = take(RowVectors(unit_vectors(0), np.arange(ROWS)), quota)
    assert len(set(taken.tolist())) == quota
