"""NovelSum: by hand, against the formula in double precision, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from codetune.selection import novelsum as module
from codetune.selection.novelsum import novelsum
from codetune.selection.row_vectors import RowVectors, Vectors


def of(vectors: NDArray[np.floating]) -> RowVectors:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return RowVectors(unit.astype(np.float32), np.arange(len(unit)))


def random_vectors(rows: int, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)


def test_three_rows_by_hand() -> None:
    # Distances: 1 between neighbours, 2 between the ends. Weights of ranks: 1, 1/2, 1/3, together 11/6.
    # Ends: (1/2 + 2/3) / (11/6) = 7/11; squared distances 2 and 4, density 1/3. Middle: (1/2 + 1/3) / (11/6) = 5/11;
    # squared distances 2 and 2, density 1/2.
    rows = of(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    expected = (2 * 7 / 11 * (1 / 3) ** 0.5 + 5 / 11 * (1 / 2) ** 0.5) / 3
    assert novelsum(rows, np.arange(3)) == pytest.approx(expected, rel=1e-6)


def test_it_is_the_formula_in_double_precision() -> None:
    vectors, rows = of(random_vectors(60)), np.arange(0, 60, 3)
    exact = vectors.stored.astype(np.float64)
    distances = 1 - exact @ exact.T
    novelties = []
    for row in rows:
        weights = 1 / np.arange(1, len(rows) + 1)
        density = 1 / np.mean(2 * np.sort(distances[row])[1:11])
        novelties.append(density**0.5 * np.sort(distances[row, rows]) @ weights / weights.sum())
    assert novelsum(vectors, rows) == pytest.approx(np.mean(novelties), rel=1e-5)


def test_rows_that_repeat_each_other_are_less_diverse() -> None:
    distinct = random_vectors(40)
    vectors = of(np.concatenate([distinct, distinct[:20]]))
    assert novelsum(vectors, np.arange(40)) > novelsum(vectors, np.r_[0:20, 40:60])


def test_equal_rows_have_no_diversity_and_one_row_has_none_to_measure() -> None:
    equal = of(np.ones((12, 8)))
    assert novelsum(equal, np.arange(12)) == 0
    assert novelsum(equal, np.arange(1)) is None


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = of(random_vectors(300))
    whole = novelsum(vectors, np.arange(200))
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    assert novelsum(vectors, np.arange(200)) == pytest.approx(whole, rel=1e-6)


def test_of_many_rows_a_sample_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = of(random_vectors(1000))
    whole = novelsum(vectors, np.arange(1000))
    monkeypatch.setattr(module, "MEASURED_ROWS", 200)
    assert novelsum(vectors, np.arange(1000)) == pytest.approx(whole, rel=0.05)
