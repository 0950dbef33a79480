from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from codetune.benchmark import run_suite
from codetune.benchmark.expected_outputs import SuiteOutputs
from codetune.benchmark.judge import JudgeSolution, count_missing, judge, prepare
from codetune.benchmark.output_match import OutputRule
from codetune.benchmark.run_suite import Candidate
from codetune.benchmark.worker_pool import run_jobs
from codetune.errors import CodetuneError, DataError
from codetune.records import Problem, Solution, Verdict
from codetune.sandbox.launcher import Sandbox
from codetune.sandbox.probe import find_failure
from tests.benchmark.tasks import PROMPT, problem

TIER = "landlock" if find_failure("landlock") is None else "none"


def verdict_of(program: str, expected: Path, task: Problem) -> tuple[str, str]:
    [found] = judge([task], [Solution(task.task_id, program)], expected, 1, TIER)
    return found.base, found.plus


def test_verdicts_follow_base_and_plus(expected: Path) -> None:
    programs = [
        PROMPT + "    return x + x",
        PROMPT + "    return abs(x) * 2",  # fails on -1, which only plus has
        PROMPT + "    return x * 2 if x != 1 else 3",  # passes all that plus adds
        PROMPT + "    return (x",
        "def single(x):\n    return 2 * x",
        "def double(x):\n    while True: pass",
    ]
    solutions = [Solution("Own/0", program, sample) for sample, program in enumerate(programs)]
    found = sorted(judge([problem()], solutions, expected, 2, TIER), key=lambda verdict: verdict.sample)
    outcomes = [("pass", "pass"), ("pass", "fail"), *[("fail", "fail")] * 4]
    assert [replace(verdict, failure="") for verdict in found] == [
        Verdict("Own/0", *both, sample) for sample, both in enumerate(outcomes)
    ]  # type: ignore[arg-type]


def test_a_program_that_hangs_outside_of_its_function_times_out(
    expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codetune.benchmark.judge.PATIENCE", 2)  # on a busy machine it is judged again
    assert verdict_of("while True: pass", expected, problem(base_input=[[1]])) == ("timeout", "timeout")


def test_floats_are_compared_with_the_tolerance_of_the_task(expected: Path) -> None:
    task = problem(canonical_solution="    return x / 3\n", base_input=[[1.0]], plus_input=[[2.0]], atol=1e-3)
    assert verdict_of("def double(x): return x / 3 + 5e-4", expected, task) == ("pass", "pass")
    assert verdict_of("def double(x): return x / 3 + 2e-3", expected, task) == ("fail", "fail")


def test_special_rules_hold_for_their_benchmark_only(expected: Path) -> None:
    # EvalPlus compares the outputs of Mbpp/2, similar_elements, as sets.
    canonical = {"prompt": "", "canonical_solution": "def similar_elements(a): return (1, 2)"}
    parts = canonical | {"entry_point": "similar_elements", "base_input": [[0]], "plus_input": []}
    program = "def similar_elements(a): return (2, 1, 2)"
    assert verdict_of(program, expected, problem(**parts, task_id="Mbpp/3"))[0] == "pass"
    assert verdict_of(program, expected, problem(**parts))[0] == "fail"


def test_expected_outputs_are_computed_once(expected: Path, tmp_path: Path) -> None:
    assert list(prepare([problem(), problem()], tmp_path, 1, TIER)) == [problem()]
    before = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    assert list(prepare([problem()], tmp_path, 1, TIER)) == []
    assert verdict_of(PROMPT + "    return 2 * x", tmp_path, problem()) == ("pass", "pass")
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == before


@pytest.mark.parametrize(
    ("canonical", "message"),
    [
        ("    return 1 / 0\n", r"double\(1\): raised ZeroDivisionError"),
        ("    import sys; sys.exit(0)\n", "raised SystemExit"),
        ("    return double\n", "returned something other than a plain value"),
        ("    import os; os._exit(9)\n", "the process died"),
        ("    return (\n", r"did not load .SyntaxError"),
        ("    pass\ndel double\n", r"double\(1\): the program does not define it"),
    ],
)
def test_a_canonical_solution_that_does_not_work_is_the_benchmarks_fault(
    tmp_path: Path, canonical: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(judge([problem(canonical_solution=canonical)], [Solution("Own/0", "")], tmp_path, 1, TIER))


def test_judging_that_breaks_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    list(prepare([problem()], tmp_path, 1, TIER))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CodetuneError, match="Judging a solution of Own/0 broke") as error:
        list(judge([problem()], [Solution("Own/0", PROMPT + "    return 2 * x")], tmp_path, 1, TIER))
    assert error.value.exit_status == 1


def test_samples_for_unknown_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Own/7"):
        list(judge([problem()], [Solution("Own/7", "")], tmp_path, 1, TIER))


def test_an_endless_canonical_solution_is_named_in_good_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "import time\nclass Slow:\n    pass\ntime.sleep(600)\n"
    task = problem(task_id="Own/9", prompt="", canonical_solution=endless)
    sandbox = Sandbox.start(TIER, tmp_path, run_suite.EVALPLUS_HARNESS)
    monkeypatch.setattr(run_suite, "CANONICAL_SECONDS", 1)
    with pytest.raises(run_suite.CanonicalSolutionError, match=r"double\(1\): all calls took over 1 s"):
        run_suite.run_canonical_solution(sandbox, task, OutputRule(), "base")
    sandbox.close()


def test_a_failure_names_the_first_call_that_went_wrong_shortened(expected: Path) -> None:
    task = problem(base_input=[[1], ["ab" * 500]])
    [found] = judge([task], [Solution("Own/0", "def double(x): return 2")], expected, 1, TIER)
    assert found.failure.startswith("base call 2, double('ababab")
    assert found.failure.endswith("): wrong answer")
    assert len(found.failure) < 300


def test_expected_outputs_leave_a_value_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Those of Mbpp/255 are more than a gigabyte, and lie where a value of that size is read.
    monkeypatch.setattr(run_suite, "READING_BYTES", 2**27)
    sandbox = Sandbox.start(TIER, tmp_path, run_suite.EVALPLUS_HARNESS)
    task, code = problem(base_input=[[1]], plus_input=[]), "def double(x): return [*range(10**6)]"
    answer = [*range(10**6)]
    for mebibytes in (0, 512):
        expected_outputs = bytearray(mebibytes << 20)
        candidate = Candidate(task, OutputRule(), code, 1)
        found = run_suite.judge_suite(sandbox, candidate, "base", SuiteOutputs([answer], [0.0]))
        assert found.outcome == "pass", found.failure
        del expected_outputs
    sandbox.close()


def test_what_a_program_waits_for_a_cpu_is_not_counted(expected: Path) -> None:
    """Two programs at once, and two other processes all the time, share the one core that this test leaves them. How
    long a program that slept has waited is known afterwards: it is tried again, alone."""
    task = problem(base_input=[[1]], plus_input=[])
    spin = "import time\ndef double(x):\n    until = time.process_time() + 0.6\n"
    spin += "    while time.process_time() < until: pass\n    return 2 * x"
    endless = "def double(x):\n    while True: pass"
    slept = spin.replace("    until", "    time.sleep(0.01)\n    until", 1)
    solutions = [Solution("Own/0", code, sample) for sample, code in enumerate([spin, slept, endless])]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        found = {verdict.sample: verdict for verdict in judge([task], solutions, expected, 2, TIER)}
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()
    assert [found[sample].base for sample in range(3)] == ["pass", "pass", "fail"]
    assert found[2].failure.endswith("took over 1 s")


@pytest.mark.parametrize(
    ("ending", "again"),
    [("signal.raise_signal(9)", True), ("raise MemoryError", True), ("os._exit(9)", False), ("raise OSError", False)],
)
def test_a_program_that_is_killed_or_lacks_memory_is_tried_again_alone(
    expected: Path, tmp_path: Path, ending: str, again: bool
) -> None:
    """As the kernel kills one where memory runs out, whoever has taken it. Without a sandbox it can leave a file."""
    program = f"import io, os, signal\nmark = {str(tmp_path / 'mark')!r}\ndef double(x):\n"
    program += "    if x == 2 and not os.path.exists(mark):\n        io.open(mark, 'w').close()\n"
    program += f"        {ending}\n    return 2 * x"
    [found] = judge([problem(plus_input=[])], [Solution("Own/0", program)], expected, 1, "none")
    assert (found.base == "pass") == again, found.failure


def test_a_sleeper_is_not_starved(expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def watched(jobs: Sequence[tuple[Any, Any]], workers: int, limit_seconds: float) -> Iterator[tuple[Any, Any]]:
        seen.extend(job for _, job in jobs)
        return run_jobs(jobs, workers, limit_seconds)

    monkeypatch.setattr("codetune.benchmark.judge.run_jobs", watched)
    task = problem(base_input=[[1]], plus_input=[])
    [found] = judge([task], [Solution("Own/0", "import time\ndef double(x): time.sleep(9)")], expected, 1, TIER)
    assert found.failure.endswith("took over 1 s")
    assert [job.candidate.patience for job in seen if isinstance(job, JudgeSolution)] == [1]


def test_how_many_expected_outputs_are_missing_is_known_beforehand(tmp_path: Path) -> None:
    assert count_missing([problem(), problem()], tmp_path) == 1
    list(prepare([problem()], tmp_path, 1, TIER))
    assert count_missing([problem()], tmp_path) == 0


JUDGING = """
import sys
from pathlib import Path
from codetune.benchmark.judge import judge
from codetune.records import Solution
from tests.benchmark.tasks import problem
programs = ["import time\\ntime.sleep(300)"] * 4
calls = [[number] for number in range(60)]
solutions = [Solution("Own/0", program, sample) for sample, program in enumerate(programs)]
print("begun", flush=True)
list(judge([problem(base_input=calls)], solutions, Path(sys.argv[1]), 2, sys.argv[2]))
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_stops_at_once_and_leaves_no_process(expected: Path, tmp_path: Path, by: signal.Signals) -> None:
    judging = subprocess.Popen(
        [sys.executable, "-c", JUDGING, str(expected), TIER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with judging:
        started = psutil.Process(judging.pid)
        patience = time.monotonic() + 30
        while len(family := started.children(recursive=True)) < 6 and time.monotonic() < patience:
            time.sleep(0.05)
        assert len(family) == 6  # two workers, a zygote for each, and what they judge
        judging.send_signal(by)
        stopping = time.monotonic()
        judging.wait(10)
    _gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert time.monotonic() - stopping < 5
    if by == signal.SIGINT:
        assert not list(tmp_path.iterdir())


def test_an_abandoned_iterator_ends_its_workers(expected: Path) -> None:
    programs = [PROMPT + "    return 2 * x", *["import time\ntime.sleep(60)"] * 3]
    solutions = [Solution("Own/0", program, sample) for sample, program in enumerate(programs)]
    verdicts = judge([problem()], solutions, expected, 2, TIER)
    before = {child.pid for child in psutil.Process().children()}
    next(verdicts)
    workers = [child for child in psutil.Process().children() if child.pid not in before]
    assert workers
    verdicts.close()
    assert not any(worker.is_running() for worker in workers)


def test_a_program_recurses_as_deep_as_under_evalplus(expected: Path) -> None:
    # EvalPlus 0.3.1 leaves its programs some 965 of the 1,000 frames, its own command taking the others.
    program = "def down(n): return 0 if n == 0 else down(n - 1)\ndef double(x):\n    down(990)\n    return 2 * x"
    [found] = judge([problem()], [Solution("Own/0", program)], expected, 1, TIER)
    assert found.plus == "pass", found.failure
