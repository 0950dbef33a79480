"""How many rows to take, of a whole or of each of its parts: by ratio, as published, or by count, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codetune.project.sections import Selection

Counts = NDArray[np.int64]


def quota_of(rows: int, eligible: int, settings: Selection) -> int:
    """How many of the eligible rows among `rows` to take. By ratio it is floor(rows * ratio) in double precision, as in
    the published scripts.

    >>> quota_of(120, 100, Selection(ratio=0.29))  # 100 * 0.29 is 28.999999999999996
    28
    >>> quota_of(120, 100, Selection(count=30))
    30
    """
    whole = eligible if settings.ratio_of == "eligible" else rows
    return min(eligible, int(whole * settings.ratio) if settings.count is None else settings.count)


def part_quotas(rows: Counts, eligible: Counts, settings: Selection) -> Counts:
    """The quota of each part, which has `eligible` of its `rows`. By count the parts share it by their sizes."""
    if settings.count is not None:
        return apportion(eligible if settings.ratio_of == "eligible" else rows, eligible, settings.count)
    quotas = [quota_of(*part, settings) for part in zip(rows.tolist(), eligible.tolist(), strict=True)]
    return np.array(quotas, dtype=np.int64)


def apportion(sizes: Counts, limits: Counts, count: int) -> Counts:
    """`count` seats over parts by their sizes, with `limits` of what each can have (Webster: seat s = 0, 1, ... of
    a part has the turn (s + 1/2) / size). A larger count takes no seat away.

    >>> apportion(np.array([50, 30, 20]), np.array([50, 1, 20]), 10)
    array([6, 1, 3])
    """
    part = np.repeat(np.arange(len(sizes)), limits)
    seat = np.arange(len(part)) - np.repeat(np.cumsum(limits) - limits, limits)
    first = np.argsort((seat + 0.5) / sizes[part], kind="stable")[:count]
    return np.bincount(part[first], minlength=len(sizes))
