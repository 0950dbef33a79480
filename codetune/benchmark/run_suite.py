"""One program on one suite of a task: it runs in the sandbox; its outputs are read and compared here, outside of it, in
order, up to the first that is wrong.

A few bytes can stand for gigabytes, or for a comparison without end: every value is read under limits of memory and
time. The time limits are EvalPlus': a program can stretch that of a call, which the sandbox keeps, but not the total.
"""

from __future__ import annotations

import pickle
import re
import reprlib
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT
from evalplus.eval import query_maximum_memory_bytes
from evalplus.eval.utils import reliability_guard, swallow_io

from codetune.benchmark.benchmarks import canonical_program
from codetune.benchmark.expected_outputs import Suite, SuiteOutputs
from codetune.benchmark.output_match import COMPARISON_ERRORS, OutputComparison, OutputRule
from codetune.benchmark.value_structure import Value
from codetune.records import Outcome, Problem
from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import CallReport, ProgramEnded, RunningProgram, Sandbox

# EvalPlus' guard and swallowed output surround a program in the sandbox as they do under its own command.
EVALPLUS_HARNESS = program.Harness(guard=reliability_guard, streams=swallow_io)
# EvalPlus' own process happens to have these loaded; its guard takes away what they need to be imported.
LOADED_BEFORE_GUARD = re.compile(r"\b(?:pandas|pyarrow|datasets)\b")
LONGEST_RUN_SECONDS = 60  # EvalPlus' bound on the sum of a task's limits
GRACE_SECONDS = 2  # and what its two joins add to it
CANONICAL_SECONDS = 60  # for all calls of a suite
READING_BYTES = 4 * 2**30  # of memory, for one value: as much as EvalPlus gives the program that made it
READING_SECONDS = 30  # for one value, decoded and compared
CALLEE = "_called_by_codetune"
STARVED_SHARE = 0.25  # of a limit, spent ready to run while no CPU was free


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program to be judged. With a `patience` above 1, the limits of calls are seconds of CPU alone, and that many
    times as long by the clock; what it sleeps counts in the limit of all calls."""

    problem: Problem
    rule: OutputRule
    code: str
    patience: int


@dataclass(frozen=True, slots=True)
class SuiteVerdict:
    """`failure` names the first call that failed, and how. `starved`: the time ran out while the program waited for a
    CPU, or memory ran out, perhaps to others, so that it deserves another try alone."""

    outcome: Outcome
    failure: str = ""
    starved: bool = False


class CanonicalSolutionError(Exception):
    """A canonical solution does not return plain values for all inputs in time: the fault of the benchmark."""


class FailedCallError(Exception):
    """A call did not give the right output. `waited_limit`: the limit that ran out while the program had computed less,
    asleep or without a CPU. `lacked_memory`: it says so itself."""

    def __init__(
        self, why: str, outcome: Outcome = "fail", waited_limit: float | None = None, lacked_memory: bool = False
    ) -> None:
        super().__init__(why)
        self.outcome: Outcome = outcome
        self.waited_limit = waited_limit
        self.lacked_memory = lacked_memory


def judge_suite(sandbox: Sandbox, candidate: Candidate, suite: Suite, expected: SuiteOutputs) -> SuiteVerdict:
    """Judges a program by the expected outputs of a suite and by the time that the canonical solution took."""
    problem, rule = candidate.problem, candidate.rule
    limits = [max(DEFAULT_MIN_TIME_LIMIT, DEFAULT_GT_TIME_LIMIT_FACTOR * seconds) for seconds in expected.seconds]
    total = min(LONGEST_RUN_SECONDS, sum(limits)) + GRACE_SECONDS
    comparison = OutputComparison(rule, problem.atol)
    # The expected outputs lie in this process: those of Mbpp/255 exceed a gigabyte.
    most_bytes = psutil.Process().memory_info().vms + READING_BYTES
    verdict = SuiteVerdict("pass")
    if rule.never_counted:
        verdict = SuiteVerdict("fail", "every call is right, but EvalPlus 0.3.1 counts no solution of this task")
    with sandbox.run(_request(candidate, suite, limits), total) as running:
        reports = running.reports()
        for number, arguments in enumerate(_inputs(problem, suite)):
            try:
                content = _content(next(reports), limits[number], total)
                _require_match(comparison, arguments, content, expected.outputs[number], expected.plain, most_bytes)
            except FailedCallError as why:
                failure = f"{suite} call {number + 1}, {_shown_call(problem, arguments)}: {why}"
                verdict = SuiteVerdict(why.outcome, failure, _is_starved(running, why))
                break
    return replace(verdict, starved=True) if running.was_killed else verdict


def run_canonical_solution(sandbox: Sandbox, problem: Problem, rule: OutputRule, suite: Suite) -> SuiteOutputs:
    """Runs the task's own solution on the inputs of a suite. Raises CanonicalSolutionError, also where an output is not
    what the task's own tests state."""
    inputs = _inputs(problem, suite)
    candidate = Candidate(problem, rule, canonical_program(problem), 1)
    stated = problem.stated if suite == "base" else ()
    outputs, seconds = [], []
    request = _request(candidate, suite, [float(CANONICAL_SECONDS)] * len(inputs))
    with sandbox.run(request, CANONICAL_SECONDS) as running:
        reports = running.reports()
        for number, arguments in enumerate(inputs):
            try:
                output, took = _canonical_output(next(reports), rule)
                if stated and not OutputComparison(rule, problem.atol).matches(arguments, output, stated[number]):
                    raise FailedCallError(f"returned {reprlib.repr(output)}, not {reprlib.repr(stated[number])}")
            except FailedCallError as why:
                at = f"{suite} call {number + 1}, {_shown_call(problem, arguments)}"
                raise CanonicalSolutionError(f"{at}: {why}") from None
            outputs.append(stated[number] if stated else output)
            seconds.append(took)
    return SuiteOutputs(outputs, seconds)


def _canonical_output(report: CallReport | ProgramEnded, rule: OutputRule) -> tuple[Value, float]:
    """The output as it is kept, and the seconds of the call."""
    content = _content(report, CANONICAL_SECONDS, CANONICAL_SECONDS)
    assert isinstance(report, CallReport)
    output = serialization.decode_and_check(content)
    if rule.kind == "presence":
        return output.value is not None, report.seconds
    if not output.known:
        raise FailedCallError("returned something other than a plain value")
    return output.value, report.seconds


def _inputs(problem: Problem, suite: Suite) -> list[list[object]]:
    return problem.base_input if suite == "base" else problem.plus_input


def _shown_call(problem: Problem, arguments: Sequence[object]) -> str:
    """The call as one would write it, with long arguments shortened."""
    return f"{problem.entry_point}({', '.join(map(reprlib.repr, arguments))})"[:200]


def _request(candidate: Candidate, suite: Suite, limits: Sequence[float]) -> program.ExecutionRequest:
    problem = candidate.problem
    # A module has one name more: that of what is called, where it is not a name of the program.
    called = f"\n\n{CALLEE} = {problem.callee}\n" if problem.callee else ""
    return program.ExecutionRequest(
        f"{problem.prelude}{candidate.code}{called}",
        CALLEE if problem.callee else problem.entry_point,
        calls=pickle.dumps(_inputs(problem, suite), protocol=5),
        seconds=tuple(limits),
        wall_factor=candidate.patience,
        memory_bytes=query_maximum_memory_bytes() or psutil.virtual_memory().total,
        returns="set" if candidate.rule.kind == "set" else "value",
        # Only what the program names: to load all of them in the zygote would make each fork three times as slow.
        imports=tuple(sorted(set(LOADED_BEFORE_GUARD.findall(candidate.code)))),
    )


def _content(report: CallReport | ProgramEnded, limit: float, total: float) -> bytearray:
    """The value that a call returned, still encoded."""
    match report:
        case CallReport(kind=program.VALUE, content=content):
            return content
        case CallReport(kind=program.TIMED_OUT, content=cause):
            raise FailedCallError(f"took over {limit:.3g} s", waited_limit=limit if cause == program.WAITED else None)
        case CallReport(kind=program.RAISED, content=name):
            raise FailedCallError(f"raised {_error_name(name)}", lacked_memory=name == b"MemoryError")
        case CallReport(kind=program.NOT_LOADED, content=name):
            raise FailedCallError(f"the program did not load ({_error_name(name)})")
        case CallReport(kind=program.NOT_DEFINED):
            raise FailedCallError("the program does not define it")
        case ProgramEnded(reason="timeout"):
            raise FailedCallError(f"all calls took over {total:.3g} s", "timeout")
        case ProgramEnded(reason="starved"):
            raise FailedCallError(f"all calls took over {total:.3g} s", "timeout", waited_limit=total)
        case ProgramEnded(reason="died"):
            raise FailedCallError("the process died")
    raise FailedCallError("what came back was too much, or nothing that a program sends")


def _error_name(content: bytearray) -> str:
    """The name of an exception's class; a hostile program writes here what it likes."""
    text = content[:60].decode(errors="replace")
    return text if text.isidentifier() else "an error"


def _require_match(
    comparison: OutputComparison,
    arguments: Sequence[Value],
    content: bytearray,
    expected: Value,
    plain: bool,
    most_bytes: int,
) -> None:
    """`plain`: the expected value is. Raises FailedCallError."""
    with _bounded(most_bytes):
        try:
            decoded = serialization.decode_and_check(content)
            output = decoded.value
            matches = comparison.matches(arguments, output, expected, decoded.plain and plain)
        except COMPARISON_ERRORS as why:
            raise FailedCallError(f"returned what cannot be read ({type(why).__name__})") from None
    if not matches and isinstance(output, serialization.Opaque):
        kind = output.type_name if output.type_name.isidentifier() else "an object"
        raise FailedCallError(f"returned {kind}, which is not a plain value")
    if not matches:
        raise FailedCallError("wrong answer")


@contextmanager
def _bounded(most_bytes: int) -> Iterator[None]:
    """Limits the memory of this process and the time for one value, after which SIGALRM kills it: C code hears no
    exception."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, READING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def _is_starved(running: RunningProgram, why: FailedCallError) -> bool:
    waited = why.waited_limit is not None and running.cpu_wait_seconds() > STARVED_SHARE * why.waited_limit
    return waited or why.lacked_memory
