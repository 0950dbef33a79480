"""Learned points: their gradient, where they go, and the cells of large sets."""

from __future__ import annotations

import os

import numpy as np
import pytest

from codetune.selection import parametric
from codetune.selection.parametric import learn_points, loss_and_gradient, parametric_rows
from codetune.selection.row_vectors import RowVectors, Vectors


def unit(vectors: np.ndarray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def on_a_circle(*degrees: float) -> Vectors:
    return unit(np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1))


def test_the_loss_by_hand() -> None:
    # Rows at 0, 0 and 90 degrees, points at 0 and 90: matching -1 / 0.07, and the points are orthogonal: log exp(0).
    loss, _ = loss_and_gradient(on_a_circle(0, 0, 90), on_a_circle(0, 90))
    assert loss == pytest.approx(-1 / 0.07, rel=1e-5)
    loss, _ = loss_and_gradient(on_a_circle(0, 0, 60), on_a_circle(0))
    assert loss == pytest.approx(-(1 + 1 + 0.5) / 3 / 0.07, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    random = np.random.default_rng(0)
    rows, points = unit(random.standard_normal((30, 5))), unit(random.standard_normal((6, 5)))
    rows, points = rows.astype(np.float64), points.astype(np.float64)
    _, gradient = loss_and_gradient(rows, points)
    for index in np.ndindex(points.shape):
        step = np.zeros_like(points)
        step[index] = 1e-5
        slope = (loss_and_gradient(rows, points + step)[0] - loss_and_gradient(rows, points - step)[0]) / 2e-5
        assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_a_single_point_goes_to_the_middle_of_the_rows() -> None:
    assert learn_points(on_a_circle(-12, 0, 15), on_a_circle(8)) == pytest.approx(on_a_circle(1), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_points_are_distributed_as_the_rows_are(seed: int) -> None:
    random = np.random.default_rng(seed)
    group = np.repeat([0, 1], [90, 30])
    rows = unit(np.eye(2, 16)[group] + 0.15 * random.standard_normal((120, 16)))
    chosen = parametric_rows(RowVectors(rows, np.arange(120)), 40, seed)
    assert len(set(chosen.tolist())) == 40
    assert abs(int(group[chosen].sum()) - 10) <= 2


def test_cells_share_the_quota_and_the_number_of_processors_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parametric, "CELL_ROWS", 30)
    monkeypatch.setattr(parametric, "ITERATIONS", 20)
    rows = RowVectors(unit(np.random.default_rng(0).standard_normal((100, 6))), np.arange(100))
    chosen = parametric_rows(rows, 41, 7).tolist()
    assert len(set(chosen)) == 41
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert parametric_rows(rows, 41, 7).tolist() == chosen
    assert parametric_rows(rows, 41, 8).tolist() != chosen
