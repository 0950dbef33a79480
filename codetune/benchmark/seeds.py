"""Outcomes of several trainings that differ in their seed alone -> a mean with its 95 % interval, in which tasks and
seeds are both sources of variance.

Pass rates are crossed, every seed on the same tasks: with the mean over seeds of each of T tasks and the mean over
tasks of each of S seeds, the squared standard error is var(task means) / T + var(seed means) / S. What task and seed do
together is counted in both, so the interval is rather too wide. Losses on held-out rows are nested, because each seed
holds out other rows: var(seed losses) / S. Quantiles are Student's, with the degrees of freedom of Satterthwaite
(1946). With one seed interval and test are of the tasks, or rows, alone, as `codetune eval` makes them; `draw_seed` is
that of their bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

from codetune.benchmark.statistics import (
    FEWEST_DIFFERING,
    bootstrap_interval,
    bootstrap_ratio,
    is_told_apart,
    least_difference_found,
    least_of_bootstrap,
    least_of_error,
    mcnemar_test,
    paired_bootstrap,
    wilson_interval,
    without_variance,
)

MOST_DEGREES = 1e4  # of freedom; with more, Student's distribution is the normal one


@dataclass(frozen=True, slots=True)
class SeedEstimate:
    """A mean over seeds; of a difference also the test against zero, and whether these tasks and seeds can find it."""

    mean: float
    low: float
    high: float
    standard_error: float
    p_value: float
    least_difference: float
    told_apart: bool


def crossed_share(values: NDArray[np.float64], draw_seed: int) -> SeedEstimate:
    """The mean of pass rates [seeds, tasks], from 0 to 1, with its interval.

    >>> found = crossed_share(np.array([[0.0, 1.0], [1.0, 1.0]]), 0)  # task means 0.5 and 1, seed means 0.5 and 1
    >>> found.mean, found.standard_error, found.high  # sqrt(0.125 / 2 + 0.125 / 2)
    (0.75, 0.3535533905932738, 1.0)
    """
    found, tasks = crossed_difference(values, draw_seed), values[0].tolist()
    low, high = max(0.0, found.low), min(1.0, found.high)
    if len(values) == 1:
        is_single = set(tasks) <= {0.0, 1.0}
        low, high = wilson_interval(sum(tasks), len(tasks)) if is_single else bootstrap_interval(tasks, draw_seed)
    return replace(found, low=low, high=high)


def crossed_difference(values: NDArray[np.float64], draw_seed: int) -> SeedEstimate:
    """The mean of differences of pass rates [seeds, tasks], with its interval. Where all are equal, interval and
    p-value are of `without_variance`. The least difference is 6 outcomes at least, as in `least_difference_found`;
    above 1 where there are fewer than 6 tasks."""
    parts, tasks = [_of_mean(values.mean(axis=0)), _of_mean(values.mean(axis=1))], values.shape[1]
    mean, fewest = float(values.mean()), FEWEST_DIFFERING / (values.size if tasks >= FEWEST_DIFFERING else tasks)
    found = _estimate(mean, parts, tasks, without_variance(mean, tasks), fewest)
    if not found.standard_error:
        return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))
    return found if len(values) > 1 else _of_tasks(values[0].tolist(), found, draw_seed)


def _of_tasks(differences: Sequence[float], found: SeedEstimate, draw_seed: int) -> SeedEstimate:
    """The estimate of one seed: by the exact McNemar test where each task has one sample, else by the paired
    bootstrap."""
    tasks, zeros = len(differences), [0.0] * len(differences)
    bootstrap = paired_bootstrap(zeros, differences, draw_seed)
    p_value, least = bootstrap.p_value, least_of_bootstrap(bootstrap.standard_error, tasks)
    if set(differences) <= {-1.0, 0.0, 1.0}:
        p_value = mcnemar_test([each < 0 for each in differences], [each > 0 for each in differences]).p_value
        least = least_difference_found(tasks, sum(each != 0 for each in differences))
    is_apart = is_told_apart(found.mean, least, p_value, tasks)
    return SeedEstimate(found.mean, bootstrap.low, bootstrap.high, found.standard_error, p_value, least, is_apart)


def nested(losses: Sequence[tuple[Sequence[float], Sequence[int]]], draw_seed: int) -> SeedEstimate:
    """The mean of nats a token over the rows of each seed, with its interval; of a comparison the nats are differences
    between two models."""
    if len(losses) == 1:
        return _of_rows(*losses[0], draw_seed)
    means = np.array([np.sum(nats) / np.sum(tokens) for nats, tokens in losses])
    rows = min(len(tokens) for _, tokens in losses)
    return _estimate(float(means.mean()), [_of_mean(means)], rows, (0.0, 1.0), 0.0)


def _of_rows(nats: Sequence[float], tokens: Sequence[int], draw_seed: int) -> SeedEstimate:
    """The estimate of one seed, by the bootstrap."""
    found = bootstrap_ratio(nats, tokens, draw_seed)
    mean, error, least = found.difference, found.standard_error, least_of_error(found.standard_error)
    is_apart = is_told_apart(mean, least, found.p_value, len(tokens))
    return SeedEstimate(mean, found.low, found.high, error, found.p_value, least, is_apart)


def _of_mean(values: NDArray[np.float64]) -> tuple[float, int]:
    """The squared standard error of a mean, and its degrees of freedom; 0 and 0 of one value."""
    return (float(values.var(ddof=1)) / len(values), len(values) - 1) if len(values) > 1 else (0.0, 0)


def _estimate(
    mean: float, parts: Sequence[tuple[float, int]], tasks: int, unknown: tuple[float, float], fewest: float
) -> SeedEstimate:
    """`parts` are the sources of variance; `unknown` is the half width of the interval where there is none, and the
    p-value of a mean that is not zero; `fewest` a lower bound of the least difference."""
    squared = sum(part for part, _ in parts)
    (half, p_value), error, least = unknown, math.sqrt(squared), 0.0
    if error:
        degrees = min(MOST_DEGREES, squared**2 / sum(part**2 / degrees for part, degrees in parts if part))
        half, p_value = float(stdtrit(degrees, 0.975)) * error, 2 * float(stdtr(degrees, -abs(mean) / error))
        least = least_standard_errors(degrees) * error
    least = max(least, fewest)
    is_apart = is_told_apart(mean, least, p_value, tasks)
    return SeedEstimate(mean, mean - half, mean + half, error, p_value, least, is_apart)


def least_standard_errors(degrees: float) -> float:
    """The number of standard errors that a t test at 5 % finds with 80 % power: the noncentrality at which a fifth of
    the noncentral t distribution lies below the critical value. Student's t is wider with few degrees of freedom, so
    it is more than 1.96 + 0.84.

    >>> [round(least_standard_errors(degrees), 2) for degrees in (1, 4, 9, 1000)]  # 2, 5, 10 and 1,001 seeds
    [16.33, 3.76, 3.15, 2.8]
    """
    return float(nctdtrinc(degrees, 0.2, stdtrit(degrees, 0.975)))
