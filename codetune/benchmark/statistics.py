"""Outcomes of samples -> pass@k by the unbiased estimator (Chen et al. 2021, section 2.1), its 95 % intervals (Wilson
1927; percentile bootstrap), and tests of two models on the same tasks (exact McNemar; paired bootstrap).

Pure functions. The intervals are about tasks like those of the benchmark, and say nothing about any others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
FEWEST_DIFFERING = 6  # tasks on which two models must differ for the exact test to be significant at 5 %
NORMAL_95 = 1.959963984540054  # two-sided
NORMAL_80 = 0.8416212335729143  # one-sided


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of `k` samples, drawn without replacement, passes.

    >>> pass_at_k(samples=4, passed=2, k=2)  # 1 - C(2, 2) / C(4, 2)
    0.8333333333333334
    """
    assert 0 <= passed <= samples
    assert 1 <= k <= samples
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def wilson_interval(passed: float, tasks: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %, for one sample a task; `passed` need not be whole, where it is a sum of rates.

    >>> [round(bound, 4) for bound in wilson_interval(81, 263)]  # Newcombe 1998, table I: 0.2553 to 0.3662
    [0.2553, 0.3662]
    """
    share, squared = passed / tasks, NORMAL_95**2
    middle = (share + squared / (2 * tasks)) / (1 + squared / tasks)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / tasks + squared / (4 * tasks**2)) / (1 + squared / tasks)
    # Where none or all pass, the bound is exactly 0 or 1; floating point misses it by 1e-17.
    return (0.0 if passed == 0 else max(0.0, middle - half)), (1.0 if passed == tasks else min(1.0, middle + half))


def bootstrap_interval(estimates: Sequence[float], seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap, over tasks, of the mean of one estimate a task. Where all estimates are equal, the
    bootstrap has no width: then the interval is Wilson's of that rate, as if each task had one sample, since how much
    tasks differ is not known."""
    if max(estimates) - min(estimates) < 1e-12:
        return wilson_interval(estimates[0] * len(estimates), len(estimates))
    low, high = np.quantile(_resampled_means(np.asarray(estimates, dtype=np.float64), seed), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class BootstrapDifference:
    """The mean over tasks of the second model minus the first, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided
    standard_error: float


def paired_bootstrap(first: Sequence[float], second: Sequence[float], seed: int) -> BootstrapDifference:
    """The percentile bootstrap, over tasks, of the difference of two models' estimates, one each a task, in the same
    order. The p-value is twice the smaller share of resamples on either side of zero, 1 / 10,001 at least. Where all
    tasks differ alike, interval and p-value are of `without_variance`."""
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)  # [tasks]
    mean = float(differences.mean())
    if np.ptp(differences) < 1e-12:
        half, p_value = without_variance(mean, len(differences))
        return BootstrapDifference(mean, max(-1.0, mean - half), min(1.0, mean + half), p_value, 0.0)
    return _bootstrap_result(mean, _resampled_means(differences, seed))


def without_variance(difference: float, tasks: int) -> tuple[float, float]:
    """Half the width of the interval, and the p-value, of a mean difference in pass rate where all of so many tasks
    differ alike, so that how much tasks vary is not known: as wide as Wilson's interval for none of them, and the test
    of their signs.

    >>> [round(value, 4) for value in without_variance(0.5, 10)]  # 1.96**2 / (10 + 1.96**2), 2 / 2**10
    [0.2775, 0.002]
    """
    return wilson_interval(0, tasks)[1], min(1.0, 2 * 0.5**tasks) if abs(difference) > 1e-12 else 1.0


def bootstrap_ratio(values: Sequence[float], weights: Sequence[float], seed: int) -> BootstrapDifference:
    """The same for the sum of `values` over the sum of `weights`, one of each a row. Of a loss in nats a token `values`
    are the nats of the rows, or their differences between two models, and `weights` are their tokens."""
    above, below = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)  # [rows]
    generator, ratios = np.random.default_rng(seed), np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = generator.integers(len(above), size=len(above))
        ratios[index] = above[drawn].sum() / below[drawn].sum()
    return _bootstrap_result(float(above.sum() / below.sum()), ratios)


def _bootstrap_result(estimate: float, resampled: NDArray[np.float64]) -> BootstrapDifference:
    low, high = np.quantile(resampled, [0.025, 0.975])
    # Sums of the same numbers in another order may miss zero by rounding: hence 1e-12.
    sides = [int((resampled <= 1e-12).sum()), int((resampled >= -1e-12).sum())]
    p_value = min(1.0, 2 * (min(sides) + 1) / (RESAMPLES + 1))
    return BootstrapDifference(estimate, float(low), float(high), p_value, float(resampled.std(ddof=1)))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        means[index] = values[generator.integers(len(values), size=len(values))].mean()
    return means


@dataclass(frozen=True, slots=True)
class McNemarTest:
    """Two models on the same tasks; only the tasks on which they differ count."""

    only_first: int
    only_second: int
    p_value: float  # two-sided


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> McNemarTest:
    """The exact McNemar test of paired outcomes, one a task, in the same order.

    >>> mcnemar_test([True] * 5 + [False], [False] * 5 + [True]).p_value  # 2 * (1 + 6) / 2**6
    0.21875
    """
    only_first = sum(bool(a and not b) for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b and not a) for a, b in zip(first, second, strict=True))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differing, count) for count in range(fewer + 1)) / 2**differing
    return McNemarTest(only_first, only_second, min(1.0, 2 * tail))


def least_difference(tasks: int, differing: float) -> float:
    """The least difference in pass@1 of two models that McNemar's test finds with 80 % power at 5 %, where they differ
    on this share of the tasks (Connor 1987, without the term of the difference itself).

    >>> round(least_difference(164, 0.2), 3)  # HumanEval
    0.098
    """
    return least_of_error(math.sqrt(differing / tasks))


def least_of_error(standard_error: float) -> float:
    """The least difference that is found with 80 % power at 5 %, where its estimate has this standard error."""
    return (NORMAL_95 + NORMAL_80) * standard_error


def least_difference_found(tasks: int, differing: int) -> float:
    """The same after a comparison, with the tasks that differed. No fewer than 6 of them, all in favour of one model,
    are significant by the exact test (2 / 2^6 = 3 %), so it is 6 tasks at least; above 1 where there are fewer.

    >>> least_difference_found(164, 3) * 164
    6.0
    """
    return max(least_difference(tasks, differing / tasks), FEWEST_DIFFERING / tasks)


def least_of_bootstrap(standard_error: float, tasks: int) -> float:
    """The same for the bootstrap of pass rates; above 1 where so few tasks tell no models apart.

    >>> least_of_bootstrap(0.01, 4)  # as after McNemar's test
    1.5
    """
    return max(least_of_error(standard_error), FEWEST_DIFFERING / tasks if tasks < FEWEST_DIFFERING else 0.0)


def is_told_apart(difference: float, least: float, p_value: float, tasks: int) -> bool:
    """Whether a difference is one that so many tasks (or rows) can find: significant, and not below the least one."""
    return tasks >= FEWEST_DIFFERING and p_value < 0.05 and abs(difference) >= least - 1e-12
