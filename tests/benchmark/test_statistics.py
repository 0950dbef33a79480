from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from codetune.benchmark.statistics import bootstrap_interval, mcnemar, pass_at_k, wilson_interval


@given(st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 7))
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = [any(drawn) for drawn in combinations([True] * passed + [False] * (samples - passed), k)]
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_one_of_a_single_sample_is_exact() -> None:
    assert (pass_at_k(1, 1, 1), pass_at_k(1, 0, 1)) == (1.0, 0.0)


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(tasks: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, tasks))
    reference = binomtest(passed, tasks).proportion_ci(method="wilson")
    assert wilson_interval(passed, tasks) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_the_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    estimates = [0.0, 0.25, 0.5, 1.0] * 50
    low, high = bootstrap_interval(estimates, 42)
    assert (low, high) == bootstrap_interval(estimates, 42) != bootstrap_interval(estimates, 43)
    # mean 0.4375, standard deviation 0.3698, of 200 tasks: 0.4375 -+ 1.96 * 0.02615
    assert (low, high) == (pytest.approx(0.3862, abs=0.004), pytest.approx(0.4888, abs=0.004))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_tasks_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar([first for first, _ in pairs], [second for _, second in pairs])
    differing = found.only_first + found.only_second
    assert differing == sum(first != second for first, second in pairs)
    assert found.p_value == pytest.approx(binomtest(found.only_first, differing).pvalue if differing else 1.0)
