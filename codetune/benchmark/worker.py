"""The trusted process that has one program after the other run in its sandbox, and judges them; `pool.py` starts it and
speaks to it over a socket. A job is a record, an answer is JSON.

It is disposable, and that is its part in the defence: it holds one task at a time, and a value that brings it down
costs the program that sent it its verdict, nothing else. Expected outputs and comparison are here, in no process that a
program could reach.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from codetune.benchmark.expected import Expected, read_expected, write_expected
from codetune.benchmark.run_suite import CanonicalError, Result, canonical_calls, judge_suite
from codetune.records import Problem
from codetune.sandbox import kernel
from codetune.sandbox.launcher import Sandbox, Tier

KILL_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Prepare:
    """Compute a task's expected outputs, and keep them at the path."""

    problem: Problem
    path: Path
    tier: Tier


@dataclass(frozen=True, slots=True)
class Check:
    """Judge a program by the expected outputs at the path; with how much patience, see `judge_suite`."""

    problem: Problem
    path: Path
    tier: Tier
    code: str
    patience: int


Job = Prepare | Check


def main() -> None:
    """The first argument is the socket's descriptor."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection: Connection[bytes, Job] = Connection(descriptor)
    kernel.die_with_parent()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    sandboxes: dict[Tier, Sandbox] = {}
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the judge is done
            return
        answer = _check(job, sandboxes) if isinstance(job, Check) else _prepare(job, sandboxes)
        connection.send_bytes(json.dumps(answer).encode())


def _check(job: Check, sandboxes: dict[Tier, Sandbox]) -> Mapping[str, object]:
    expected = _read_expected(job.path)
    base = _judge(job, sandboxes, "base", expected)
    # `plus` passes only where both do, so a program that failed already is not run again.
    plus = _judge(job, sandboxes, "plus", expected) if base.outcome == "pass" else base
    return {"base": base.outcome, "plus": plus.outcome, "failure": plus.failure, "starved": plus.starved}


def _judge(job: Check, sandboxes: dict[Tier, Sandbox], name: str, expected: Expected) -> Result:
    sandbox = _sandbox(job.tier, sandboxes)
    try:
        return judge_suite(sandbox, job.problem, job.code, (name, expected.suite(name)), job.patience)
    finally:
        _clear_up(sandbox)


def _prepare(job: Prepare, sandboxes: dict[Tier, Sandbox]) -> Mapping[str, object]:
    try:
        suites = [canonical_calls(_sandbox(job.tier, sandboxes), job.problem, name) for name in ("base", "plus")]
    except CanonicalError as why:
        return {"trouble": str(why)}
    write_expected(Expected(*suites), job.path)
    return {}


def _sandbox(tier: Tier, sandboxes: dict[Tier, Sandbox]) -> Sandbox:
    if tier not in sandboxes or sandboxes[tier].broken:
        sandboxes[tier] = Sandbox.start(tier, Path.cwd())
    return sandboxes[tier]


@lru_cache(maxsize=1)  # samples of a task come one after the other; all tasks together take gigabytes
def _read_expected(path: Path) -> Expected:
    gc.disable()  # millions of new values, none of them garbage
    try:
        return read_expected(path)
    finally:
        gc.enable()


def _clear_up(sandbox: Sandbox) -> None:
    """In the tier `none` a program can start others. They are descendants of this process, adopted where their parent
    is gone; only the zygote stays. In all other tiers there is nobody to be found."""
    if sandbox.tier != "none":
        return
    deadline = time.monotonic() + KILL_SECONDS
    while (left := _strangers(sandbox)) and time.monotonic() < deadline:
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):  # gone, or a grandchild that is about to be ours
                continue


def _strangers(sandbox: Sandbox) -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.pid != sandbox.process.pid]
