"""Jobs -> answers from worker processes, as many at a time as asked for, each with its own scratch directory. Handles
deadlines and deaths; what the jobs do is not known here.

Workers are fresh interpreters in sessions of their own: they share neither memory nor Ctrl-C with this process. A value
that kills the worker that reads it costs one job. Answers are JSON: nothing of a worker is unpickled here. When the
iterator ends, for whatever reason, the workers and all that they started are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO, Protocol, Self, TypeAlias, TypeVar

import psutil

from codetune.errors import CodetuneError
from codetune.sandbox import confinement
from codetune.sandbox.shortage import when_available
from codetune.store.scratch import scratch_directory

JobKey = TypeVar("JobKey")

# Import paths are appended: in front of the standard library, a user's own module `types` would replace its module.
WORKER = "import sys; sys.path += sys.argv[2:]; from codetune.benchmark.worker_pool import serve; serve()"
STOP_PASSES = 20  # a program may start others while it is being killed


class PoolJob(Protocol):
    """The work of a worker, sent as a pickle of this process."""

    def perform(self) -> Mapping[str, object]:
        """Runs in the worker; returns what JSON can hold."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The worker ended without an answer: by a signal, twice, or by an error of its own, whose last line is given."""

    signal: int | None
    last_line: str


@dataclass(frozen=True, slots=True)
class WorkerTimedOut:
    """There was no answer within the limit."""


Answer = bytes | WorkerDied | WorkerTimedOut
_Attempt: TypeAlias = tuple[JobKey, PoolJob, bool]  # whether it is the first
_Running: TypeAlias = "dict[Connection[PoolJob, bytes], tuple[_PoolWorker, _Attempt[JobKey]]]"


def run_jobs(
    jobs: Sequence[tuple[JobKey, PoolJob]], workers: int, limit_seconds: float
) -> Iterator[tuple[JobKey, Answer]]:
    """Yields answers as they come, not in order. A job whose worker was killed is tried once more: another program or
    the machine may have been the cause."""
    waiting = deque((key, job, True) for key, job in jobs)
    running: _Running[JobKey] = {}
    idle: list[_PoolWorker] = []
    with scratch_directory() as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    worker = idle.pop() if idle else _PoolWorker.start(scratch)
                    worker.send(waiting[0][1], limit_seconds)
                    running[worker.connection] = worker, waiting.popleft()
                for (key, job, is_first), answer in _next_answers(running, idle):
                    if is_first and isinstance(answer, WorkerDied) and answer.signal:
                        waiting.append((key, job, False))
                    else:
                        yield key, answer
        finally:
            for worker in (*idle, *(worker for worker, _ in running.values())):
                worker.stop()


def serve() -> None:
    """The loop of a worker, which ends when the connection does. The first argument is the socket's descriptor."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection: Connection[bytes, PoolJob] = Connection(descriptor)
    confinement.die_with_parent()
    confinement.adopt_orphans()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send_bytes(json.dumps(job.perform()).encode())


def _next_answers(running: _Running[JobKey], idle: list[_PoolWorker]) -> Iterator[tuple[_Attempt[JobKey], Answer]]:
    """Waits for answers; takes their workers out of `running`, to `idle` those that can take another job."""
    for connection in _first_ready([worker for worker, _ in running.values()]):
        worker, attempt = running.pop(connection)
        answer = worker.receive()
        if isinstance(answer, bytes):
            idle.append(worker)
        else:
            worker.stop()
        yield attempt, answer


def _first_ready(workers: Sequence[_PoolWorker]) -> list[Connection[PoolJob, bytes]]:
    """Waits for an answer, a death or a deadline."""
    remaining = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
    answered = wait([worker.connection for worker in workers], remaining)
    return [worker.connection for worker in workers if worker.connection in answered or worker.is_overdue]


@dataclass(slots=True)
class _PoolWorker:
    process: subprocess.Popen[bytes]
    connection: Connection[PoolJob, bytes]
    errors: Path
    deadline: float

    @classmethod
    def start(cls, scratch: Path) -> Self:
        directory = Path(tempfile.mkdtemp(dir=scratch))
        errors = directory / "errors.txt"
        import_paths = [str(Path(path).resolve()) for path in sys.path]
        ours, theirs = socket.socketpair()
        # -P: nothing that a program leaves in its directory is ever imported.
        command = [sys.executable, "-P", "-c", WORKER, str(theirs.fileno()), *import_paths]
        with theirs, errors.open("wb") as stderr:
            process = _start_process(command, directory, stderr, theirs.fileno())
        return cls(process, Connection(ours.detach()), errors, deadline=0.0)

    @property
    def is_overdue(self) -> bool:
        return time.monotonic() >= self.deadline

    def send(self, job: PoolJob, limit_seconds: float) -> None:
        self.deadline = time.monotonic() + limit_seconds
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `receive` will say so
            self.connection.send(job)

    def receive(self) -> Answer:
        try:
            return self.connection.recv_bytes() if self.connection.poll() else WorkerTimedOut()
        except (EOFError, ConnectionResetError):
            status = self.process.wait()
            last_line = ""
            with contextlib.suppress(FileNotFoundError):  # without a sandbox a program can remove it
                last_line = self.errors.read_text(errors="replace").strip().rpartition("\n")[2]
            return WorkerDied(-status if status < 0 else None, last_line or f"exit status {status}")

    def stop(self) -> None:
        """Kills descendants first: while the worker lives, orphans are its children and can be found."""
        for _ in range(STOP_PASSES):
            if not (left := _descendants(self.process.pid)):
                break
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _start_process(
    command: Sequence[str], directory: Path, stderr: BinaryIO, descriptor: int
) -> subprocess.Popen[bytes]:
    """Raises CodetuneError where the machine has had no process or no memory to give for half a minute."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[descriptor],
            cwd=directory,
            env=_environment(directory),
            start_new_session=True,
        )

    try:
        return when_available(start)
    except OSError as why:
        raise CodetuneError(
            f"No process could be started to judge programs: {why.strerror}. Expected: room for a few processes below "
            "the user's limit (ulimit -u), the container's limit and the machine's memory. Run the command again when "
            "there is; what is judged already is kept"
        ) from why


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(pid).children(recursive=True) if child.status() != "zombie"]
    except psutil.NoSuchProcess:
        return []


def _environment(directory: Path) -> dict[str, str]:
    """No tokens, no home directory, no EvalPlus settings; hashes are seeded so that verdicts repeat."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
