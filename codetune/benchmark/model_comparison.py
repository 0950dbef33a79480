"""Two reports -> what tells the models apart on the tasks that both have: which tasks one does better, by name, and
whether that could be chance. One sample a task: exact McNemar; several: a seeded paired bootstrap of pass@1.

Says nothing about why, and corrects for no number of comparisons: of twenty pairs of equal models one looks different.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypedDict

from codetune.benchmark.evaluate import Report
from codetune.benchmark.statistics import mcnemar, paired_bootstrap


class Difference(TypedDict):
    """The second model against the first, on one suite. `won` and `lost` name the tasks that the second does better and
    worse, in the benchmark's order."""

    test: str
    p_value: float  # two-sided
    difference: float  # of pass@1, as a fraction
    interval_95: tuple[float, float]
    only_first: int
    only_second: int
    won: list[str]
    lost: list[str]


class Comparison(TypedDict):
    benchmark: str
    models: list[str]
    tasks: int  # that both have
    one_task: float  # what one task more is worth, as a fraction of pass@1
    base: Difference
    plus: Difference


def compare(reports: Sequence[Report], seed: int) -> list[Comparison]:
    """Every two models that were judged on the same benchmark and have a task in common."""
    compared = []
    for first, second in combinations(reports, 2):
        tasks = [task for task in first["verdicts"] if task in second["verdicts"]]
        if first["benchmark"] == second["benchmark"] and tasks:
            compared.append(
                Comparison(
                    benchmark=first["benchmark"],
                    models=[first["model"], second["model"]],
                    tasks=len(tasks),
                    one_task=1 / len(tasks),
                    base=_difference(first, second, tasks, "base", seed),
                    plus=_difference(first, second, tasks, "plus", seed),
                )
            )
    return compared


def _difference(first: Report, second: Report, tasks: Sequence[str], suite: str, seed: int) -> Difference:
    before, after = ([_share(report, task, suite) for task in tasks] for report in (first, second))
    paired = paired_bootstrap(before, after, seed)
    single = all(len(report["verdicts"][task]) == 1 for report in (first, second) for task in tasks)
    exact = mcnemar([share == 1 for share in before], [share == 1 for share in after])
    won = [task for task, old, new in zip(tasks, before, after, strict=True) if new > old]
    lost = [task for task, old, new in zip(tasks, before, after, strict=True) if new < old]
    return Difference(
        test="exact McNemar" if single else "paired bootstrap",
        p_value=exact.p_value if single else paired.p_value,
        difference=paired.difference,
        interval_95=(paired.low, paired.high),
        only_first=len(lost),
        only_second=len(won),
        won=won,
        lost=lost,
    )


def _share(report: Report, task: str, suite: str) -> float:
    """pass@1 of one task."""
    verdicts = report["verdicts"][task]
    return sum(verdict[suite] == "pass" for verdict in verdicts) / len(verdicts)
