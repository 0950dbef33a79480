"""Outcomes of several trainings that differ in their seed alone -> a mean with its 95 % interval, in which tasks and
seeds are both sources of variance.

Pass rates are crossed, every seed on the same tasks: with the mean over seeds of each of T tasks and the mean over
tasks of each of S seeds, the squared standard error is var(task means) / T + var(seed means) / S. What task and seed do
together is counted in both, so the interval is rather too wide. Losses on held-out rows are nested, because each seed
holds out other rows: var(seed losses) / S. Quantiles are Student's, with the degrees of freedom of Satterthwaite
(1946). With one seed the interval is of the tasks, or rows, alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from codetune.benchmark.statistics import (
    FEWEST_DIFFERING,
    bootstrap_ratio,
    is_told_apart,
    least_of_error,
    wilson_interval,
)


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


def crossed_share(values: NDArray[np.float64]) -> SeedEstimate:
    """The mean of pass rates [seeds, tasks], from 0 to 1, with its interval.

    >>> found = crossed_share(np.array([[0.0, 1.0], [1.0, 1.0]]))  # task means 0.5 and 1, seed means 0.5 and 1
    >>> found.mean, found.standard_error, found.high  # sqrt(0.125 / 2 + 0.125 / 2)
    (0.75, 0.3535533905932738, 1.0)
    """
    found = crossed_difference(values)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def crossed_difference(values: NDArray[np.float64]) -> SeedEstimate:
    """The mean of differences of pass rates [seeds, tasks], with its interval. Where all are equal, how much tasks
    differ is not known: then the interval is as wide as Wilson's for none of so many tasks. The least difference is 6
    outcomes at least, as in `least_difference_found`."""
    parts, tasks = [_of_mean(values.mean(axis=0)), _of_mean(values.mean(axis=1))], values.shape[1]
    unknown = wilson_interval(0, tasks)[1]
    return _estimate(float(values.mean()), parts, tasks, unknown, FEWEST_DIFFERING / values.size)


def nested(losses: Sequence[tuple[Sequence[float], Sequence[int]]]) -> SeedEstimate:
    """The mean of nats a token over the rows of each seed, with its interval; of a comparison the nats are differences
    between two models."""
    ratios = [bootstrap_ratio(nats, tokens, seed) for seed, (nats, tokens) in enumerate(losses)]
    means, rows = np.array([ratio.difference for ratio in ratios]), min(len(tokens) for _, tokens in losses)
    part = _of_mean(means) if len(means) > 1 else (ratios[0].standard_error ** 2, rows - 1)
    return _estimate(float(means.mean()), [part], rows, 0.0, 0.0)


def _of_mean(values: NDArray[np.float64]) -> tuple[float, int]:
    """The squared standard error of a mean, and its degrees of freedom; 0 and 0 of one value."""
    return (float(values.var(ddof=1)) / len(values), len(values) - 1) if len(values) > 1 else (0.0, 0)


def _estimate(
    mean: float, parts: Sequence[tuple[float, int]], tasks: int, unknown: float, fewest: float
) -> SeedEstimate:
    """`parts` are the sources of variance; `unknown` is the half width of the interval where there is none, `fewest` a
    lower bound of the least difference."""
    squared = sum(part for part, _ in parts)
    error, half, p_value = math.sqrt(squared), unknown, 1.0
    if error:
        degrees = squared**2 / sum(part**2 / degrees for part, degrees in parts if part)
        half, p_value = float(stdtrit(degrees, 0.975)) * error, 2 * float(stdtr(degrees, -abs(mean) / error))
    least = max(least_of_error(error), fewest)
    is_apart = is_told_apart(mean, least, p_value, tasks)
    return SeedEstimate(mean, mean - half, mean + half, error, p_value, least, is_apart)
