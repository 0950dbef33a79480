"""Samples -> programs, on all cores: each sample is sanitized (`sanitize.py`) in a worker process (`worker_pool.py`)
with a budget of time, memory and size. What exceeds it is given up, counted and judged as wrong: a text of a model can
take any time to take apart, and nothing that it holds may stop the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codetune.benchmark.sanitize import SanitizedSample, sanitize
from codetune.benchmark.worker_pool import Answer, WorkerTimedOut, run_jobs
from codetune.limits import limited_memory, limited_time
from codetune.records import Completion, Problem, Solution

MOST_CHARACTERS = 1_000_000
CPU_SECONDS = 10  # for one sample; a thousand lines take one
CLOCK_SECONDS = 120  # on a busy machine, and where a call into C does not end
MEMORY_BYTES = 4 * 2**30
SAMPLES_A_WORKER = 20  # at least: starting a worker takes as long


def sanitize_all(
    pairs: Sequence[tuple[Problem, Completion | Solution]], workers: int
) -> Iterator[tuple[int, SanitizedSample]]:
    """Yields the position of each sample, in any order, and what is made of it."""
    jobs = [
        (position, ExtractProgram(replace(problem, base_input=[], plus_input=[], stated=()), sample))
        for position, (problem, sample) in enumerate(pairs)
    ]
    needed = min(workers, 1 + len(jobs) // SAMPLES_A_WORKER)
    for position, answer in run_jobs(jobs, needed, CLOCK_SECONDS):
        yield position, _sanitized(pairs[position][1], answer)


class BudgetError(BaseException):
    """The time of a sample is used up; no `except` on the way stops it."""


@dataclass(frozen=True, slots=True)
class ExtractProgram:
    """A worker's job: sanitize a sample."""

    problem: Problem
    sample: Completion | Solution

    def perform(self) -> Mapping[str, object]:
        if len(_text(self.sample)) > MOST_CHARACTERS:
            return {"given_up": f"it has over {MOST_CHARACTERS:,} characters"}
        try:
            with limited_time(CPU_SECONDS, BudgetError), limited_memory(MEMORY_BYTES):
                found = sanitize(self.problem, self.sample)
        except BudgetError:
            return {"given_up": f"no program was found in {CPU_SECONDS} s"}
        except (MemoryError, RecursionError) as why:
            return {"given_up": f"it is too deep or too large ({type(why).__name__})"}
        return {"solution": found.solution.solution, "changed": found.changed, "parses": found.parses}


def _sanitized(sample: Completion | Solution, answer: Answer) -> SanitizedSample:
    if isinstance(answer, bytes):
        found = json.loads(answer)
    elif isinstance(answer, WorkerTimedOut):
        found = {"given_up": f"no program was found in {CLOCK_SECONDS} s"}
    else:
        found = {"given_up": f"the process that took it apart died ({answer.last_line})"}
    if why := found.get("given_up"):
        return SanitizedSample(Solution(sample.task_id, "", sample.sample), changed=True, parses=False, given_up=why)
    solution = Solution(sample.task_id, found["solution"], sample.sample)
    return SanitizedSample(solution, changed=found["changed"], parses=found["parses"])


def _text(sample: Completion | Solution) -> str:
    return sample.completion if isinstance(sample, Completion) else sample.solution
