"""One program on one suite of a task: it runs in the sandbox, its answers are read and compared here, in order, up to
the first that is wrong.

What a program sends is read under a limit of memory and of time, since a few bytes can stand for gigabytes, or for a
comparison without end. Limits of time are EvalPlus'. The limit of a single call is kept inside the sandbox, where a
program can stretch it; the limit of all calls together is kept here, where it cannot.
"""

from __future__ import annotations

import pickle
import reprlib
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT
from evalplus.eval import query_maximum_memory_bytes

from codetune.benchmark.expected import Calls
from codetune.benchmark.output_match import (
    INCOMPARABLE,
    Comparison,
    compares_sets,
    is_never_counted,
    wants_presence_only,
)
from codetune.records import Outcome, Problem
from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import Ended, Frame, Run, Sandbox

LONGEST_RUN_SECONDS = 60  # EvalPlus' bound on the sum of a task's limits
GRACE_SECONDS = 2  # and what its two joins add to it
CANONICAL_SECONDS = 60  # for all calls of a suite
READING_BYTES = 4 * 2**30  # of memory, for one value: as much as EvalPlus lets the program have that made it
READING_SECONDS = 30  # for one value, decoded and compared
STARVED_SHARE = 0.25  # of a limit: ready to run, and no CPU was free


@dataclass(frozen=True, slots=True)
class Result:
    """`starved`: much of the time that ran out it waited for a CPU, so that it deserves another try alone."""

    outcome: Outcome
    failure: str = ""
    starved: bool = False


class CanonicalError(Exception):
    """A canonical solution that does not return plain values for all inputs in time: the benchmark's fault."""


class WrongError(Exception):
    """A call without the right answer; `limit_seconds` where it had no more time."""

    def __init__(self, why: str, limit_seconds: float | None = None) -> None:
        super().__init__(why)
        self.limit_seconds = limit_seconds


def judge_suite(sandbox: Sandbox, problem: Problem, code: str, suite: tuple[str, Calls], patience: int) -> Result:
    """`suite`: its name, `base` or `plus`, and what the canonical solution returned for its inputs, and when. With a
    `patience` above 1 limits are seconds of CPU, and that many times as long by the clock."""
    name, expected = suite
    inputs = inputs_of(problem, name)
    limits = [max(DEFAULT_MIN_TIME_LIMIT, DEFAULT_GT_TIME_LIMIT_FACTOR * seconds) for seconds in expected.seconds]
    total = patience * (min(LONGEST_RUN_SECONDS, sum(limits)) + GRACE_SECONDS)
    comparison, most_bytes = Comparison(problem), _own_bytes() + READING_BYTES
    with sandbox.run(_request(problem, code, name, limits, patience), total) as run:
        frames = run.frames()
        for number, call in enumerate(inputs):
            try:
                content = _content(next(frames), limits[number], total)
                _require_agreement(comparison, call, content, expected.outputs[number], most_bytes)
            except WrongError as why:
                at = f"{name} call {number + 1}, {shown_call(problem, call)}: {why}"
                return Result("timeout" if why.limit_seconds == total else "fail", at, _is_starved(run, why))
    if is_never_counted(problem):
        return Result("fail", "every call is right, but EvalPlus 0.3.1 counts no solution of this task")
    return Result("pass")


def canonical_calls(sandbox: Sandbox, problem: Problem, name: str) -> Calls:
    """What the task's own solution returns for the inputs of a suite, and how long each call takes."""
    inputs = inputs_of(problem, name)
    code = problem.prompt + problem.canonical_solution
    outputs, seconds = [], []
    request = _request(problem, code, name, [float(CANONICAL_SECONDS)] * len(inputs), 1)
    with sandbox.run(request, CANONICAL_SECONDS) as run:
        frames = run.frames()
        for number, call in enumerate(inputs):
            try:
                frame = next(frames)
                content = _content(frame, CANONICAL_SECONDS, CANONICAL_SECONDS)
                assert isinstance(frame, Frame)
                output, is_known = serialization.decode_and_tell(content)
                if not is_known and not wants_presence_only(problem):
                    raise WrongError("returned what is no plain value")
            except WrongError as why:
                raise CanonicalError(f"{name} call {number + 1}, {shown_call(problem, call)}: {why}") from None
            outputs.append(output is not None if wants_presence_only(problem) else output)
            seconds.append(frame.seconds)
    return Calls(outputs, seconds)


def inputs_of(problem: Problem, name: str) -> list[list[Any]]:
    return problem.base_input if name == "base" else problem.plus_input


def shown_call(problem: Problem, call: Sequence[Any]) -> str:
    """The call as one would write it, with long arguments shortened."""
    arguments = ", ".join(reprlib.repr(argument) for argument in call)
    return f"{problem.entry_point}({arguments})"[:200]


def _request(problem: Problem, code: str, name: str, limits: Sequence[float], patience: int) -> program.Request:
    return program.Request(
        code,
        problem.entry_point,
        pickle.dumps(inputs_of(problem, name), protocol=5),
        tuple(limits),
        patience,
        query_maximum_memory_bytes() or psutil.virtual_memory().total,
        "set" if compares_sets(problem) else "value",
    )


def _content(frame: Frame | Ended, limit: float, total: float) -> bytearray:
    """What a call returned, still in bytes."""
    match frame:
        case Frame(kind=program.VALUE, content=content):
            return content
        case Frame(kind=program.LATE):
            raise WrongError(f"took over {limit:.3g} s", limit)
        case Frame(kind=program.RAISED, content=name):
            raise WrongError(f"raised {_error_name(name)}")
        case Frame(kind=program.NOT_LOADED, content=name):
            raise WrongError(f"the program did not load ({_error_name(name)})")
        case Frame(kind=program.NOT_DEFINED):
            raise WrongError("the program does not define it")
        case Ended(how="late"):
            raise WrongError(f"all calls took over {total:.3g} s", total)
        case Ended(how="died"):
            raise WrongError("the process died")
    raise WrongError("what came back was too much, or nothing that a program sends")


def _error_name(content: bytearray) -> str:
    """A hostile program writes here what it likes."""
    text = content[:60].decode(errors="replace")
    return text if text.isidentifier() else "an error"


def _require_agreement(
    comparison: Comparison, call: Sequence[Any], content: bytearray, expected: Any, most_bytes: int
) -> None:
    with _bounded(most_bytes):
        try:
            output = serialization.decode(content)
            agrees = comparison.agrees(call, output, expected)
        except INCOMPARABLE as why:
            raise WrongError(f"returned what cannot be read ({type(why).__name__})") from None
    if not agrees and isinstance(output, serialization.Opaque):
        kind = output.type_name if output.type_name.isidentifier() else "an object"
        raise WrongError(f"returned {kind}, which is no plain value")
    if not agrees:
        raise WrongError("wrong answer")


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Memory of this process, in bytes, and time for one value. At the end of the time this process dies, which its
    judge will notice: code in C hears no exception."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, READING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def _own_bytes() -> int:
    """The expected outputs of a task are part of it: those of Mbpp/255 are more than a gigabyte."""
    return int(psutil.Process().memory_info().vms)


def _is_starved(run: Run, why: WrongError) -> bool:
    return why.limit_seconds is not None and run.waited_seconds() > STARVED_SHARE * why.limit_seconds
