"""The process that runs solutions, one at a time; `pool.py` starts it and speaks to it over a socket. A job is a tuple,
an answer is JSON.

EvalPlus' own check forks a child for every run, compares inside it, and limits its time and memory; around that, this
process sees to it that the child has neither the socket nor a terminal, and that nothing it started outlives the run.
It does not keep a program from files, the network or forging its verdict: that takes the sandbox.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from evalplus.config import DEFAULT_GT_TIME_LIMIT_FACTOR, DEFAULT_MIN_TIME_LIMIT
from evalplus.eval import PASS, untrusted_check

from codetune.benchmark.expected import Expected, read_expected, write_expected
from codetune.benchmark.problems import rules_of
from codetune.records import Problem

Job = tuple[Problem, Path] | tuple[Problem, Path, str]  # compute the expected outputs; judge a program by them

LARGEST_FILE_BYTES = 64 * 2**20  # of what a program writes in its scratch directory
KILL_SECONDS = 10
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> None:
    """The first argument is the socket's descriptor."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection: Connection[bytes, Job] = Connection(descriptor)
    # Single-threaded and small, so forking is safe; EvalPlus takes the default way to start its child.
    multiprocessing.set_start_method("fork")
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.register_at_fork(after_in_child=lambda: _let_go(descriptor))
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the judge is done
            return
        connection.send_bytes(json.dumps(_do(job)).encode())


def _do(job: Job) -> dict[str, str]:
    if len(job) == 2:
        write_expected(*job)
        return {}
    problem, path, program = job
    expected = _read_expected(path)
    base = _outcome(problem, program, problem.base_input, expected.base, expected.base_seconds)
    # `plus` passes only where both do, so a program that failed already is not run again.
    plus = (
        _outcome(problem, program, problem.plus_input, expected.plus, expected.plus_seconds) if base == PASS else base
    )
    return {"base": base, "plus": plus}


@lru_cache(maxsize=1)  # samples of a task come one after the other; all tasks together take gigabytes
def _read_expected(path: Path) -> Expected:
    return read_expected(path)


def _outcome(
    problem: Problem, program: str, calls: list[list[object]], expected: list[object], seconds: list[float]
) -> str:
    try:
        outcome: str = untrusted_check(
            rules_of(problem),
            program,
            calls,
            problem.entry_point,
            expected=expected,
            atol=problem.atol,
            ref_time=seconds,
            fast_check=True,  # up to the first wrong answer
            min_time_limit=DEFAULT_MIN_TIME_LIMIT,
            gt_time_limit_factor=DEFAULT_GT_TIME_LIMIT_FACTOR,
        )[0]
    finally:
        _clear_up()
    return outcome


def _clear_up() -> None:
    """Whatever the program started is a descendant of this process, adopted where its parent is gone; whatever it
    wrote lies in a temporary directory that only its own end in peace removes."""
    multiprocessing.active_children()  # takes leave of EvalPlus' child
    deadline = time.monotonic() + KILL_SECONDS
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):  # gone, or a grandchild that is about to be ours
                continue
    for directory in Path(tempfile.gettempdir()).glob("tmp*"):
        shutil.rmtree(directory, ignore_errors=True)


def _let_go(descriptor: int) -> None:
    """In EvalPlus' child, before the program."""
    os.close(descriptor)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, most in ((resource.RLIMIT_FSIZE, LARGEST_FILE_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
