from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_rel

from codetune.benchmark.statistics import (
    FEWEST_DIFFERING,
    bootstrap_interval,
    bootstrap_ratio,
    is_told_apart,
    least_difference,
    least_difference_found,
    mcnemar_test,
    paired_bootstrap,
    pass_at_k,
    wilson_interval,
)


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


def test_the_paired_bootstrap_is_near_the_paired_t_test() -> None:
    generator = np.random.default_rng(5)
    first = generator.integers(0, 5, 300) / 4
    second = np.clip(first + generator.choice([-0.25, 0.0, 0.25], 300, p=[0.2, 0.4, 0.4]), 0, 1)
    found, reference = paired_bootstrap(list(first), list(second), 42), ttest_rel(second, first)
    assert found.difference == pytest.approx(float((second - first).mean()))
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=0.003), pytest.approx(interval.high, abs=0.003))
    assert found.p_value == pytest.approx(reference.pvalue, abs=0.01)


def test_equal_models_are_not_told_apart_by_the_paired_bootstrap() -> None:
    found = paired_bootstrap([0.1, 0.2, 0.7] * 30, [0.1, 0.2, 0.7] * 30, 42)
    bound = 1.96**2 / (90 + 1.96**2)  # Wilson's for 0 of 90
    assert (found.difference, found.low, found.high) == (0, pytest.approx(-bound, rel=1e-4), -found.low)
    assert (found.p_value, found.standard_error) == (1, 0)


def test_two_tasks_that_differ_alike_are_not_significant() -> None:
    found = paired_bootstrap([0.0, 0.5], [0.5, 1.0], 42)
    assert (found.p_value, found.high) == (0.5, 1.0)  # of two signs; the bound of 0 of 2 is 0.66
    assert found.low == pytest.approx(0.5 - 1.96**2 / (2 + 1.96**2), rel=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_tasks_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar_test([first for first, _ in pairs], [second for _, second in pairs])
    differing = found.only_first + found.only_second
    assert differing == sum(first != second for first, second in pairs)
    assert found.p_value == pytest.approx(binomtest(found.only_first, differing).pvalue if differing else 1.0)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, wilson_interval(0, 10)), (1.0, wilson_interval(10, 10)), (0.5, wilson_interval(5, 10))],
)
def test_an_interval_has_a_width_also_where_all_tasks_are_alike(share: float, expected: tuple[float, float]) -> None:
    assert bootstrap_interval([share] * 10, 42) == expected


@given(st.floats(0, 1), st.integers(1, 300))
def test_the_interval_of_equal_tasks_holds_their_rate_and_more(rate: float, tasks: int) -> None:
    low, high = bootstrap_interval([rate] * tasks, 42)
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1
    assert high - low > 0.01


@pytest.mark.parametrize(("tasks", "points"), [(164, 9.8), (164 + 378, 5.4)])
def test_the_least_difference_that_a_benchmark_shows(tasks: int, points: float) -> None:
    """With a fifth of the tasks differing; checked by the power of the normal approximation."""
    least = least_difference(tasks, 0.2)
    assert round(100 * least, 1) == points
    assert norm.sf(norm.ppf(0.975) - least * math.sqrt(tasks / 0.2)) == pytest.approx(0.8, abs=1e-6)


# Of 164 tasks 33 differ: 2.8016 * sqrt(33 / 164 / 164) = 0.0981. Of 4 no exact test is significant: 6 tasks are needed.
@pytest.mark.parametrize(
    ("tasks", "differing", "least"), [(164, 33, 0.0981), (164, 4, 6 / 164), (164, 0, 6 / 164), (3, 3, 2.0)]
)
def test_after_a_comparison_the_tasks_that_differ_say_what_can_be_found(
    tasks: int, differing: int, least: float
) -> None:
    assert least_difference_found(tasks, differing) == pytest.approx(least, abs=5e-5)


def test_six_tasks_in_favour_of_one_model_are_the_fewest_that_are_significant() -> None:
    found = [
        mcnemar_test([False] * count, [True] * count).p_value for count in (FEWEST_DIFFERING - 1, FEWEST_DIFFERING)
    ]
    assert found == [2 / 2**5, 2 / 2**6]
    assert found[0] > 0.05 > found[1]


# (difference, least difference, p, tasks)
@pytest.mark.parametrize(
    ("found", "is_apart"),
    [
        ((0.10, 0.098, 0.004, 164), True),
        ((-0.10, 0.098, 0.004, 164), True),
        ((0.08, 0.098, 0.02, 164), False),  # significant, but smaller than what the tasks find reliably
        ((0.10, 0.098, 0.06, 164), False),
        ((0.50, 0.0, 0.0002, 5), False),
    ],
)
def test_a_difference_is_told_apart_if_it_is_significant_and_large_enough(
    found: tuple[float, float, float, int], is_apart: bool
) -> None:
    assert is_told_apart(*found) == is_apart


def test_a_ratio_of_sums_is_resampled_by_rows() -> None:
    # 6 nats over 2 tokens and 4 over 8: the sums give 1, resamples of one row alone 3 and 0.5.
    found = bootstrap_ratio([6.0, 4.0], [2.0, 8.0], seed=0)
    assert (found.difference, found.low, found.high) == (1.0, 0.5, 3.0)
    equal = [float(n % 7) for n in range(50)]
    assert bootstrap_ratio(equal, [1.0] * 50, 3) == paired_bootstrap([0.0] * 50, equal, 3)


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = [0.0, 1.0] * 100  # deviation 0.5 over sqrt(200)
    assert paired_bootstrap([0.0] * 200, values, 1).standard_error == pytest.approx(0.5 / math.sqrt(200), rel=0.03)
