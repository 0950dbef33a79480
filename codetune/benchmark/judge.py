"""Solutions -> verdicts by EvalPlus' problems, rules and limits, over all cores. Each program runs in a sandbox
(`launcher.py`), what it returns is compared outside of it (`run_suite.py`), and the processes that do both are kept by
`pool.py`. Canonical solutions, which give the expected outputs, run in the same sandbox.

A verdict cannot be forged from inside: a program is told its inputs and nothing else, and sends values back; whether
these are right is decided where it cannot reach. What it can do is in `launcher.py`. Nor can one program stop the run:
what breaks its judge costs it its own verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from codetune.benchmark.expected import expected_path
from codetune.benchmark.pool import Died, Overdue, run_jobs
from codetune.benchmark.problems import pair_with_problems
from codetune.benchmark.worker import Check, Prepare
from codetune.errors import CodetuneError, DataError
from codetune.records import Problem, Solution, Verdict
from codetune.sandbox.launcher import Tier

# The longest run is 62 s, base and plus are two; the rest is for starting and reading on a busy machine.
CHECK_SECONDS = 2 * 62 + 76
# Judged again, a program has its limits in seconds of CPU, and by the clock this many times as long: also where others
# take most of the machine all the time.
PATIENCE = 5
PREPARE_SECONDS = 2 * 60 + 60
JUDGE_BROKE = "judging it broke twice"  # where a failure begins with it, somebody should look


def judge(
    problems: Sequence[Problem], solutions: Sequence[Solution], expected: Path, workers: int, tier: Tier
) -> Iterator[Verdict]:
    """A verdict for every solution, as they are found. `expected` is where expected outputs are kept; those that are
    not there are computed first. A program that brings its judge down twice has failed; `JUDGE_BROKE` says
    where that was by an error, a fault of ours. One that had no time because
    it had no CPU is judged again when all others are done, alone."""
    pairs = pair_with_problems(problems, solutions)
    for _ in prepare([problem for problem, _ in pairs], expected, workers, tier):
        pass
    jobs = [
        (solution, Check(problem, expected_path(expected, problem), tier, solution.solution, 1))
        for problem, solution in sorted(pairs, key=lambda pair: (pair[0].task_id, pair[1].sample))
    ]
    starved = []
    for (solution, job), answer in run_jobs([((solution, job), job) for solution, job in jobs], workers, CHECK_SECONDS):
        found = _found(_judged_afresh(job) if _broke(answer) else answer)
        if found["starved"]:
            starved.append((solution, job))
        else:
            yield _verdict(solution, found)
    patient = [(solution, replace(job, patience=PATIENCE)) for solution, job in starved]
    jobs_again = [((solution, job), job) for solution, job in patient]
    for (solution, job), answer in run_jobs(jobs_again, 1, PATIENCE * CHECK_SECONDS):
        yield _verdict(solution, _found(_judged_afresh(job) if _broke(answer) else answer))


def prepare(problems: Sequence[Problem], expected: Path, workers: int, tier: Tier) -> Iterator[Problem]:
    """Computes the expected outputs that are not there yet, by running canonical solutions; yields the tasks done."""
    jobs = [(problem, Prepare(problem, path, tier)) for path, problem in _missing(problems, expected).items()]
    for problem, answer in run_jobs(jobs, workers, PREPARE_SECONDS):
        trouble = json.loads(answer).get("trouble") if isinstance(answer, bytes) else _trouble(answer, PREPARE_SECONDS)
        if trouble:
            raise DataError(
                f"The canonical solution of {problem.task_id} gives no expected output: {trouble}. Expected: "
                f"{problem.entry_point} returns plain values for all inputs of the task. Mend the benchmark."
            )
        yield problem


def count_missing(problems: Sequence[Problem], expected: Path) -> int:
    """How many tasks `prepare` would run."""
    return len(_missing(problems, expected))


def _missing(problems: Sequence[Problem], expected: Path) -> dict[Path, Problem]:
    paths = {expected_path(expected, problem): problem for problem in problems}
    # An empty one is what a power cut can leave.
    return {path: problem for path, problem in paths.items() if not path.is_file() or not path.stat().st_size}


def _verdict(solution: Solution, found: dict[str, Any]) -> Verdict:
    return Verdict(solution.task_id, found["base"], found["plus"], solution.sample, found["failure"])


def _broke(answer: bytes | Died | Overdue) -> TypeGuard[Died]:
    """Whether the judge ended by an error of its own."""
    return isinstance(answer, Died) and answer.signal is None


def _judged_afresh(job: Check) -> bytes | Died | Overdue:
    """By a new judge, after one that can also judge the task's own solution: where none can, no program is at fault."""
    known = replace(job, code=job.problem.prompt + job.problem.canonical_solution)
    answers = dict(run_jobs([("known", known), ("program", job)], 1, PATIENCE * CHECK_SECONDS))
    if _broke(answers["known"]):
        raise CodetuneError(
            f"Judging a solution of {job.problem.task_id} {_trouble(answers['known'], CHECK_SECONDS)}. Expected: a "
            "verdict. Run the command again; if it stays, delete the directory of expected outputs."
        )
    return answers["program"]


def _found(answer: bytes | Died | Overdue) -> dict[str, Any]:
    match answer:
        case bytes():
            found: dict[str, Any] = json.loads(answer)
            return found
        case Overdue():
            return _both("timeout", "judging it took too long")
        case Died(signal=int()):
            return _both("fail", "judging it came to no end: what it returned was too much")
    return _both("fail", f"{JUDGE_BROKE} ({_error_name(answer)})")


def _both(outcome: str, failure: str) -> dict[str, Any]:
    return {"base": outcome, "plus": outcome, "failure": failure, "starved": False}


def _error_name(answer: Died) -> str:
    """The kind of error alone: its message may hold what a program has sent."""
    name = answer.last_words.partition(":")[0]
    return name if name.replace(".", "").isidentifier() else "for an unknown reason"


def _trouble(answer: Died | Overdue, limit_seconds: int) -> str:
    if isinstance(answer, Overdue):
        return f"took over {limit_seconds} s"
    return f"was killed by signal {answer.signal}" if answer.signal else f"broke ({answer.last_words})"
