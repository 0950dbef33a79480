"""Samples -> how many of them pass all tests of their tasks, without artefacts: what the stages sanitize and evaluate
do, for a model that is still being trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codetune.benchmark.benchmarks import runnable
from codetune.benchmark.evalplus_format import pair_with_problems
from codetune.benchmark.judge import judge
from codetune.benchmark.sanitize_all import sanitize_all
from codetune.records import Completion, Problem, Solution


def count_passed(
    problems: Sequence[Problem], samples: Sequence[Completion | Solution], expected: Path, workers: int, tier: str
) -> int:
    """`expected` is the directory of expected outputs. Raises as `judge` does."""
    pairs = pair_with_problems(problems, samples)
    solutions = [runnable(pairs[at][0], clean.solution) for at, clean in sanitize_all(pairs, workers)]
    return sum(verdict.plus == "pass" for verdict in judge(problems, solutions, expected, workers, tier))
