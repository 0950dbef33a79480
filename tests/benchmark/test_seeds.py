"""Means over seeds with intervals, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from codetune.benchmark.seeds import crossed_difference, crossed_share, least_standard_errors, nested
from codetune.benchmark.statistics import bootstrap_ratio, least_of_error, paired_bootstrap

SEED = 42  # of the bootstraps


def test_tasks_and_seeds_are_both_sources_of_variance() -> None:
    # Task means 0.5, 1, 0, 0.5: variance 1/6, a quarter of it 0.041667. Seed means 0.5 and 0.5: no variance.
    found = crossed_difference(np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]]), SEED)
    assert (found.mean, found.standard_error) == (0.5, pytest.approx(0.2041, abs=5e-5))
    # Three degrees of freedom, all of the tasks: 3.1824 standard errors.
    assert (found.low, found.high) == pytest.approx((0.5 - 3.1824 * 0.2041, 0.5 + 3.1824 * 0.2041), abs=5e-4)


def test_seeds_that_differ_widen_the_interval() -> None:
    same, other = np.tile([0.0, 1.0], (3, 50)), np.tile([0.0, 1.0], (3, 50))
    other[0], other[2] = other[0] * 0.5, np.minimum(1.0, other[2] + 0.25)
    # Seed means 0.25, 0.5, 0.625: variance 0.036458, a third of it 0.012153.
    variance = np.var(other.mean(axis=0), ddof=1) / 100
    assert crossed_difference(other, SEED).standard_error == pytest.approx(np.sqrt(variance + 0.012153), abs=1e-5)
    assert crossed_difference(same, SEED).standard_error == pytest.approx(np.sqrt(0.25 * 100 / 99 / 100))


def test_with_one_seed_the_interval_is_of_the_tasks() -> None:
    # 100 tasks, half of them 1: standard error 0.5025 / 10; Wilson's interval of 50 of 100 is 0.4038 to 0.5962.
    found = crossed_share(np.tile([0.0, 1.0], (1, 50)), SEED)
    assert found.standard_error == pytest.approx(0.05025, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.4038, 0.5962), abs=5e-5)
    # Of two samples a task it is a bootstrap, which needs no more than the tasks: within 2 % of 1.96 standard errors.
    several = crossed_share(np.tile([0.5, 1.0], (1, 50)), SEED)
    assert several.high - several.mean == pytest.approx(1.96 * 0.025, rel=0.05)


def test_with_one_seed_a_difference_is_tested_as_eval_tests_it() -> None:
    # 7 tasks won and 1 lost of 40: 2 * (1 + 8) / 2**8. They find 2.8016 * sqrt(8) / 40.
    found = crossed_difference(np.array([[1.0] * 7 + [-1.0] + [0.0] * 32]), SEED)
    assert found.p_value == 0.0703125
    assert found.least_difference == pytest.approx(0.1981, abs=5e-5)
    assert not found.told_apart
    # 5 of 10 tasks are significant for a t test, and never for the exact one.
    assert not crossed_difference(np.array([[1.0] * 5 + [0.0] * 5]), SEED).told_apart


def test_losses_of_seeds_with_rows_of_their_own_vary_as_the_seeds_do() -> None:
    # 1, 2 and 3 nats a token: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.3027.
    found = nested([([loss * 4.0, loss * 6.0], [4, 6]) for loss in (1.0, 2.0, 3.0)], SEED)
    assert (found.mean, found.standard_error) == (2.0, pytest.approx(3**-0.5))
    assert found.high == pytest.approx(2 + 4.3027 * 3**-0.5, abs=1e-4)


def test_a_difference_is_told_apart_if_tasks_and_seeds_find_it() -> None:
    drawn = np.random.default_rng(0)
    found = crossed_difference(0.3 + 0.1 * drawn.standard_normal((5, 60)), SEED)
    assert found.told_apart
    assert (
        2.8016 * found.standard_error < found.least_difference < 3.7611 * found.standard_error
    )  # of 4 and more degrees
    assert not crossed_difference(0.3 + 3.0 * drawn.standard_normal((5, 60)), SEED).told_apart


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_least_difference_is_found_four_times_in_five(seeds: int) -> None:
    # Losses that differ by as much as is said, in trainings whose standard deviation of a difference is 1.
    drawn = np.random.default_rng(seeds)
    least = least_standard_errors(seeds - 1) / np.sqrt(seeds)
    trials = least + drawn.standard_normal((4000, seeds))
    ratios = trials.mean(axis=1) / (trials.std(axis=1, ddof=1) / np.sqrt(seeds))
    critical = {2: 12.7062, 3: 4.3027, 5: 2.7764}[seeds]
    assert (ratios > critical).mean() == pytest.approx(0.8, abs=0.025)


def test_models_that_never_differ_are_not_told_apart() -> None:
    found = crossed_difference(np.zeros((2, 10)), SEED)
    assert (found.mean, found.p_value, found.told_apart) == (0, 1.0, False)
    # Wilson's upper bound for 0 of 10 tasks; 6 of 20 outcomes.
    assert (found.low, found.high) == pytest.approx((-0.2775, 0.2775), abs=5e-5)
    assert found.least_difference == 0.3


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0.0, 0.2775), (1.0, 0.7225, 1.0)])
def test_a_share_is_never_below_0_or_above_1(rate: float, low: float, high: float) -> None:
    found = crossed_share(np.full((2, 10), rate), SEED)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_model_that_wins_every_task_is_told_apart(seeds: int) -> None:
    # 10 of 10 tasks, and no variance: 2 / 2**10. Wilson's upper bound for 0 of 10 tasks is 0.2775.
    found = crossed_difference(np.ones((seeds, 10)), SEED)
    assert (found.p_value, found.told_apart) == (2**-9, True)
    assert (found.low, found.high) == (pytest.approx(0.7225, abs=5e-5), 1.0)


@pytest.mark.parametrize("outcomes", [[[1.0] * 5], [[1.0] * 5] * 2, [[0.5, 0.5, 1.0, 0.5, 1.0]]])
def test_five_tasks_find_no_difference_however_many_seeds_and_samples(outcomes: list[list[float]]) -> None:
    few = crossed_difference(np.array(outcomes), SEED)
    assert (few.told_apart, few.least_difference) == (False, 1.2)


@pytest.mark.parametrize("differences", [[1.0] * 7 + [-1.0] * 3, [0.5] * 6 + [-0.5, 0.0], [0.0] * 9, [-1.0] * 8])
def test_with_one_seed_the_comparison_of_pass_rates_is_that_of_eval(differences: list[float]) -> None:
    found = crossed_difference(np.array([differences]), SEED)
    as_eval = paired_bootstrap([0.0] * len(differences), differences, SEED)
    assert (found.mean, found.low, found.high) == (as_eval.difference, as_eval.low, as_eval.high)


def test_with_one_seed_the_loss_has_the_interval_and_the_test_of_eval() -> None:
    # Rows of 2.0 and 1.0 nats over 4 and 3 tokens, and so on: the percentile bootstrap that `eval holdout` makes.
    nats, tokens = [2.0, 1.0, 3.0, 5.0, 2.5, 4.0, 1.5], [4, 3, 5, 8, 6, 5, 3]
    found, as_eval = nested([(nats, tokens)], SEED), bootstrap_ratio(nats, tokens, SEED)
    assert (found.mean, found.low, found.high) == (19 / 34, as_eval.low, as_eval.high)
    assert (found.p_value, found.standard_error) == (as_eval.p_value, as_eval.standard_error)
    assert found.least_difference == least_of_error(as_eval.standard_error)
