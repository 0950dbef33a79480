"""The calibrated mismatch test: what it drops, where it stops, and where it says that it has no power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codetune.selection.mismatch import MismatchTest, find_mismatched

Floats = NDArray[np.float64]


def world(good: float, rows: int = 1000, wrong: int = 100, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Pmi, answer tokens and shuffled pmi of rows. The first `wrong` are mismatched: their pmi is 0 on average, as that
    of shuffled pairs; that of the others is `good`. The mean over n tokens deviates by 1 / sqrt(n)."""
    draw = np.random.default_rng(seed)
    tokens = np.exp(draw.uniform(np.log(10), np.log(400), rows)).round()
    pmi = np.where(np.arange(rows) < wrong, 0.0, good) + draw.normal(size=rows) / np.sqrt(tokens)
    shuffled = np.full(rows, np.nan)
    sample = draw.choice(rows, 256, replace=False)
    shuffled[sample] = draw.normal(size=256) / np.sqrt(tokens[sample])
    return pmi, tokens, shuffled


def dropped(test: MismatchTest, pmi: Floats) -> NDArray[np.bool_]:
    return pmi < test.limits


def test_mismatched_rows_are_found_and_hardly_a_good_one_is_dropped() -> None:
    pmi, tokens, shuffled = world(1.0)
    test = find_mismatched(pmi, tokens, shuffled, 0.05)
    assert test.has_power
    assert test.caught > 0.9
    assert test.estimated == pytest.approx(0.1, abs=0.03)
    assert dropped(test, pmi)[:100].sum() >= 88
    assert dropped(test, pmi)[100:].sum() <= 20


def test_a_short_answer_has_a_higher_limit_than_a_long_one() -> None:
    pmi, tokens, shuffled = world(1.0)
    limits = find_mismatched(pmi, tokens, shuffled, 0.05).limits
    assert limits[tokens < 20].mean() > 2 * limits[tokens > 200].mean()


def test_a_data_set_without_mismatched_rows_loses_hardly_any() -> None:
    pmi, tokens, shuffled = world(1.0, wrong=0)
    test = find_mismatched(pmi, tokens, shuffled, 0.05)
    assert dropped(test, pmi).sum() <= 10


def test_a_model_that_cannot_read_the_instructions_gives_a_test_without_power() -> None:
    pmi, tokens, shuffled = world(0.0)
    test = find_mismatched(pmi, tokens, shuffled, 0.05)
    assert not test.has_power
    assert test.estimated > 0.9


def test_where_good_rows_overlap_with_shuffled_pairs_the_limit_gives_way() -> None:
    clear, overlapping = world(1.0), world(0.15)
    assert find_mismatched(*overlapping, 0.05).caught < find_mismatched(*clear, 0.05).caught


def test_rows_without_a_score_change_nothing() -> None:
    pmi, tokens, shuffled = world(1.0)
    without = [np.append(column, [np.nan, np.nan]) for column in (pmi, tokens, shuffled)]
    expected, found = find_mismatched(pmi, tokens, shuffled, 0.05), find_mismatched(*without, 0.05)
    assert found.limits[:-2].tolist() == expected.limits.tolist()
    assert not dropped(found, without[0])[-2:].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_order_of_rows_changes_nothing_and_the_level_bounds_what_is_caught(seed: int, level: float) -> None:
    pmi, tokens, shuffled = world(0.5, rows=300, seed=seed % 7)
    order = np.random.default_rng(seed).permutation(300)
    test = find_mismatched(pmi, tokens, shuffled, level)
    again = find_mismatched(pmi[order], tokens[order], shuffled[order], level)
    assert np.allclose(again.limits, test.limits[order])
    assert test.caught <= 1 - level + 1 / 256
