"""Solutions -> verdicts by EvalPlus' tasks, rules and limits, on all cores: each program runs in a sandbox
(`sandbox/launcher.py`) under a worker process (`worker_pool.py`), which compares its outputs (`run_suite.py`).
Canonical solutions, which give the expected outputs, run in the same sandbox.

A program cannot forge a verdict: it gets its inputs alone, and the values that it sends are compared where it has no
access. Nor can it stop the run: where judging it breaks the worker, only its own verdict is lost.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TypedDict, TypeGuard

import psutil

from codetune.benchmark.benchmarks import canonical_program, output_rule
from codetune.benchmark.evalplus_format import pair_with_problems
from codetune.benchmark.expected_outputs import (
    ExpectedOutputs,
    Suite,
    SuiteOutputs,
    expected_path,
    read_expected,
    write_expected,
)
from codetune.benchmark.output_match import OutputRule
from codetune.benchmark.run_suite import (
    EVALPLUS_HARNESS,
    Candidate,
    CanonicalSolutionError,
    SuiteVerdict,
    judge_suite,
    run_canonical_solution,
)
from codetune.benchmark.worker_pool import Answer, WorkerDied, WorkerTimedOut, run_jobs
from codetune.errors import CodetuneError, DataError
from codetune.records import Outcome, Problem, Solution, Verdict
from codetune.sandbox.launcher import Sandbox
from codetune.sandbox.program import PATIENCE

# The longest run is 62 s, base and plus are two; the rest is for starting and reading on a busy machine.
JUDGE_SECONDS = 2 * 62 + 76
PREPARE_SECONDS = 2 * 60 + 60
KILL_SECONDS = 10
JUDGE_BROKE = "judging it broke twice"  # a failure that begins with it is a fault of codetune, to be looked at


def judge(
    problems: Sequence[Problem], solutions: Sequence[Solution], expected: Path, workers: int, tier: str
) -> Iterator[Verdict]:
    """Yields a verdict for every solution, in any order. `expected` is the directory of expected outputs; missing ones
    are computed first. A program that breaks its worker twice has failed; if by an error rather than a signal, its
    failure begins with `JUDGE_BROKE`. One that lacked a CPU or memory, perhaps for others, is judged again alone when
    all others are done; no run gets more computing time than the limits.

    Raises DataError for a solution of an unknown task and for a canonical solution that gives no expected output,
    CodetuneError where not even the canonical solution can be judged."""
    pairs = pair_with_problems(problems, solutions)
    for _ in prepare([problem for problem, _ in pairs], expected, workers, tier):
        pass
    jobs = [
        (solution, JudgeSolution(Candidate(problem, output_rule(problem), solution.solution, 1), path, tier))
        for problem, solution in sorted(pairs, key=lambda pair: (pair[0].task_id, pair[1].sample))
        for path in [expected_path(expected, problem)]
    ]
    starved = []
    for solution, job, judgement in _judgements(jobs, workers, PATIENCE * JUDGE_SECONDS):
        if judgement["starved"]:
            starved.append((solution, replace(job, candidate=replace(job.candidate, patience=PATIENCE))))
        else:
            yield _verdict(solution, judgement)
    for solution, _, judgement in _judgements(starved, 1, PATIENCE * JUDGE_SECONDS):
        yield _verdict(solution, judgement)


def prepare(problems: Sequence[Problem], expected: Path, workers: int, tier: str) -> Iterator[Problem]:
    """Computes the expected outputs that are missing, by running canonical solutions; yields the tasks done. Raises
    DataError for a canonical solution that gives none."""
    jobs = [
        (problem, ComputeExpectedOutputs(problem, output_rule(problem), path, tier))
        for path, problem in _missing(problems, expected).items()
    ]
    for problem, answer in run_jobs(jobs, workers, PREPARE_SECONDS):
        error = json.loads(answer).get("error") if isinstance(answer, bytes) else _ending(answer, PREPARE_SECONDS)
        if error:
            raise DataError(
                f"The canonical solution of {problem.task_id} gives no expected output: {error}. Expected: "
                f"{problem.entry_point} returns plain values for all inputs of the task. Fix the benchmark."
            )
        yield problem


def count_missing(problems: Sequence[Problem], expected: Path) -> int:
    """The number of tasks that `prepare` would run."""
    return len(_missing(problems, expected))


class Judgement(TypedDict):
    """The answer of a worker: the outcomes of a program, its first failed call, and whether it is to be judged
    again alone."""

    base: Outcome
    plus: Outcome
    failure: str
    starved: bool


@dataclass(frozen=True, slots=True)
class JudgeSolution:
    """A worker's job: judge a program by the expected outputs at the path."""

    candidate: Candidate
    path: Path
    tier: str

    def perform(self) -> Judgement:
        expected = _read_expected(self.path)
        base = self._judge("base", expected)
        # `plus` passes only where both do, so a program that has failed already is not run again.
        plus = self._judge("plus", expected) if base.outcome == "pass" and self.candidate.problem.plus_input else base
        return {"base": base.outcome, "plus": plus.outcome, "failure": plus.failure, "starved": plus.starved}

    def _judge(self, suite: Suite, expected: ExpectedOutputs) -> SuiteVerdict:
        sandbox = _sandbox(self.tier)
        try:
            return judge_suite(sandbox, self.candidate, suite, expected.of(suite))
        finally:
            _kill_strays(sandbox)


@dataclass(frozen=True, slots=True)
class ComputeExpectedOutputs:
    """A worker's job: run the canonical solution of a task, and keep its outputs at the path."""

    problem: Problem
    rule: OutputRule
    path: Path
    tier: str

    def perform(self) -> Mapping[str, str]:
        """Returns nothing, or the `error` of the canonical solution."""
        try:
            base = run_canonical_solution(_sandbox(self.tier), self.problem, self.rule, "base")
            plus = SuiteOutputs([], [], plain=True)
            if self.problem.plus_input:
                plus = run_canonical_solution(_sandbox(self.tier), self.problem, self.rule, "plus")
        except CanonicalSolutionError as why:
            return {"error": str(why)}
        write_expected(ExpectedOutputs(base, plus), self.path)
        return {}


def _missing(problems: Sequence[Problem], expected: Path) -> dict[Path, Problem]:
    paths = {expected_path(expected, problem): problem for problem in problems}
    # A loss of power can leave an empty one.
    return {path: problem for path, problem in paths.items() if not path.is_file() or not path.stat().st_size}


def _verdict(solution: Solution, judgement: Judgement) -> Verdict:
    return Verdict(solution.task_id, judgement["base"], judgement["plus"], solution.sample, judgement["failure"])


def _judgements(
    jobs: Sequence[tuple[Solution, JudgeSolution]], workers: int, limit_seconds: float
) -> Iterator[tuple[Solution, JudgeSolution, Judgement]]:
    for (solution, job), answer in run_jobs([(pair, pair[1]) for pair in jobs], workers, limit_seconds):
        yield solution, job, _judgement(_judged_again(job) if _broke(answer) else answer)


def _broke(answer: Answer) -> TypeGuard[WorkerDied]:
    """Whether the worker ended by an error of its own."""
    return isinstance(answer, WorkerDied) and answer.signal is None


def _judged_again(job: JudgeSolution) -> Answer:
    """The answer of a new worker, after it has judged the task's own solution: where it cannot, no program is at
    fault."""
    problem = job.candidate.problem
    known = replace(job, candidate=replace(job.candidate, code=canonical_program(problem)))
    answers = dict(run_jobs([("known", known), ("program", job)], 1, PATIENCE * JUDGE_SECONDS))
    if _broke(answers["known"]):
        raise CodetuneError(
            f"Judging a solution of {problem.task_id} {_ending(answers['known'], JUDGE_SECONDS)}. Expected: a "
            "verdict. Run the command again; if it fails again, delete the directory of expected outputs."
        )
    return answers["program"]


def _judgement(answer: Answer) -> Judgement:
    match answer:
        case bytes():
            judgement: Judgement = json.loads(answer)
            return judgement
        case WorkerTimedOut():
            return _failed("timeout", "judging it took too long")
        case WorkerDied(signal=int()):
            return _failed("fail", "judging it came to no end: what it returned was too much")
    return _failed("fail", f"{JUDGE_BROKE} ({_error_name(answer)})")


def _failed(outcome: Outcome, failure: str) -> Judgement:
    return {"base": outcome, "plus": outcome, "failure": failure, "starved": False}


def _error_name(answer: WorkerDied) -> str:
    """The kind of error alone: its message may hold what a program has sent."""
    name = answer.last_line.partition(":")[0]
    return name if name.replace(".", "").isidentifier() else "for an unknown reason"


def _ending(answer: WorkerDied | WorkerTimedOut, limit_seconds: int) -> str:
    if isinstance(answer, WorkerTimedOut):
        return f"took over {limit_seconds} s"
    return f"was killed by signal {answer.signal}" if answer.signal else f"broke ({answer.last_line})"


@lru_cache(maxsize=1)  # samples of a task come one after the other; all tasks together take gigabytes
def _read_expected(path: Path) -> ExpectedOutputs:
    gc.disable()  # millions of new values, none of them garbage
    try:
        return read_expected(path)
    finally:
        gc.enable()


def _sandbox(tier: str) -> Sandbox:
    """The sandbox of this worker process, started once and again where a program has broken it."""
    if _started_sandbox(tier).broken:
        _started_sandbox.cache_clear()
    return _started_sandbox(tier)


@cache
def _started_sandbox(tier: str) -> Sandbox:
    return Sandbox.start(tier, Path.cwd(), EVALPLUS_HARNESS)


def _kill_strays(sandbox: Sandbox) -> None:
    """Kills what a program has started, which only a tier that confines nothing allows. They are descendants of this
    process, which adopts those whose parent is gone; the zygote stays."""
    if sandbox.tier.confines:
        return
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        descendants = psutil.Process().children(recursive=True)
        strays = [child for child in descendants if child.pid != sandbox.process.pid]
        if not strays:
            return
        for process in strays:
            try:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):  # gone, or a grandchild that is about to be adopted
                continue
