"""Solutions -> verdicts by EvalPlus' problems, expected outputs, rules and limits, in processes of their own with
scratch directories, over all cores.

This version is the sandbox "process": a program has no terminal, a small environment, limits of time, memory and file
size, and nothing that it starts outlives it, but it could read the user's files and forge its own verdict. Everything
that a stronger sandbox will change lies behind `confinement` and `worker.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from codetune.benchmark.expected import expected_path
from codetune.benchmark.pool import Died, Overdue, run_jobs
from codetune.benchmark.problems import pair_with_problems
from codetune.errors import CodetuneError, DataError
from codetune.records import Outcome, Problem, Solution, Verdict

# EvalPlus' longest run is 62 s, base and plus are two; the rest is for reading what is expected on a busy machine.
CHECK_SECONDS = 2 * 62 + 56
EXPECT_SECONDS = 600


def judge(
    problems: Sequence[Problem], solutions: Sequence[Solution], expected: Path, workers: int
) -> Iterator[Verdict]:
    """A verdict for every solution, as they are found. `expected` is where expected outputs are kept; those that are
    not there are computed first. A program that brings its judge down twice has failed."""
    pairs = pair_with_problems(problems, solutions)
    for _ in prepare([problem for problem, _ in pairs], expected, workers):
        pass
    jobs = [
        (solution, (problem, expected_path(expected, problem), solution.solution))
        for problem, solution in sorted(pairs, key=lambda pair: (pair[0].task_id, pair[1].sample))
    ]
    for solution, answer in run_jobs(jobs, workers, CHECK_SECONDS):
        base, plus = _outcomes(solution, answer)
        yield Verdict(solution.task_id, base, plus, solution.sample)


def prepare(problems: Sequence[Problem], expected: Path, workers: int) -> Iterator[Problem]:
    """Computes the expected outputs that are not there yet, by running canonical solutions; yields the tasks done."""
    missing = {path: problem for problem in problems if not (path := expected_path(expected, problem)).is_file()}
    jobs = [(problem, (problem, path)) for path, problem in missing.items()]
    for problem, answer in run_jobs(jobs, workers, EXPECT_SECONDS):
        if not isinstance(answer, bytes):
            raise DataError(
                f"The canonical solution of {problem.task_id} {_trouble(answer, EXPECT_SECONDS)}. Expected: "
                f"{problem.entry_point} returns plain values for all inputs of the task. Mend the benchmark."
            )
        yield problem


def confinement(sandbox: Literal["auto", "bubblewrap", "namespaces", "landlock", "none"]) -> str:
    """What the result says about how programs were confined: all that this version has, or that nothing was wanted."""
    return "none" if sandbox == "none" else "process"


def _outcomes(solution: Solution, answer: bytes | Died | Overdue) -> tuple[Outcome, Outcome]:
    match answer:
        case bytes():
            found = json.loads(answer)
            return found["base"], found["plus"]
        case Overdue():
            return "timeout", "timeout"
        case Died(signal=int()):
            return "fail", "fail"
    raise CodetuneError(
        f"Judging a solution of {solution.task_id} {_trouble(answer, CHECK_SECONDS)}. Expected: a verdict. Run the "
        "command again; if it stays, delete the directory of expected outputs."
    )


def _trouble(answer: Died | Overdue, limit_seconds: int) -> str:
    if isinstance(answer, Overdue):
        return f"took over {limit_seconds} s"
    return f"was killed by signal {answer.signal}" if answer.signal else f"broke ({answer.last_words})"
