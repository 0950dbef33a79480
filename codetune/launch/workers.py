"""The worker processes of one command: started, watched, and ended with it. A worker sends events (progress, result,
error) through a pipe; the output of rank 0 is shown, that of another rank only where it dies of an unknown error.

Tried instead, with two gloo ranks (torch 2.13, accelerate 1.15):
- elastic_launch, and accelerate, whose launchers call it or torchrun: an interrupt kills after 30 s. `shutdown_timeout`
  (new in 2.13) waited for a checkpoint of 45 s, but then a second Ctrl-C did not end it. A failed rank ends as
  ChildFailedError with an exit code, on 12 to 17 lines; a late node as RendezvousTimeoutError without its name.
- elastic.multiprocessing.start_processes: `close(SIGINT, timeout)` waits, and ends at once when asked twice. But `wait`
  answers the first failure with SIGTERM to all, so a rank that knows the cause cannot report it, and a rank that hangs
  gets 30 s. It passes no pipe to workers, and costs the command an import of torch (1.8 s).
- Both leave orphans when the command is killed. What remains of them is `Popen` with an environment: 12 lines here."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

from codetune import errors
from codetune.errors import CodetuneError, WorkerError
from codetune.launch.environment import Node, WorkerTask, lone_environment, worker_environment

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Progress = Mapping[str, float | str | None]
OnProgress = Callable[[int, Progress], None]  # rank, its message
SendProgress = Callable[[Progress], None]
EventKind = Literal["progress", "result", "error", "traceback", "interrupted"]
SendEvent = Callable[[EventKind, JSON], None]
WriteText = Callable[[str], None]

POLL_SECONDS = 0.05
# After the first failure the other workers get this long to report their own errors: most of them only lost their
# connection to the one that failed, but one of them may know the cause.
SECONDS_TO_REPORT = 1.0
# Interrupted workers write one checkpoint together; a worker that still runs so long after another has exited waits for
# a rank that is gone.
SECONDS_TO_EXIT = 20.0
SHOWN_BYTES = 8_000  # of the output of a worker that failed: the end of it


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The workers to start on this machine, which is `node` of several: each runs `command` for the job in a file."""

    command: Sequence[str]
    local_world_size: int
    node: Node
    job: Path
    # None: ranks of one group. Else a worker of its own, and the GPUs that it sees; () are those of the command.
    gpus: Sequence[str] | None = None


def run_workers(spec: WorkerSpec, on_progress: OnProgress, write_stderr: WriteText) -> list[JSON]:
    """Starts the workers, waits for all of them, and returns their results by rank.

    The first SIGINT or SIGTERM is forwarded, and the workers may take as long as they need to write a checkpoint; the
    second one kills them. Raises the error of the worker that failed first, after killing the others;
    KeyboardInterrupt where the workers were interrupted."""
    workers = [_Worker.start(spec, local_rank) for local_rank in range(spec.local_world_size)]
    try:
        with _forwarded_signals(workers) as received:
            _watch(workers, on_progress, write_stderr, received)
    finally:
        for worker in workers:
            worker.kill()
    failed = _cause(workers)
    if failed is not None and failed.error is None:
        write_stderr(failed.last_output() + failed.traceback)
    for worker in workers:
        os.close(worker.output)
    if failed is not None:
        raise failed.failure()
    if any(worker.process.returncode for worker in workers):  # not where they finished before the signal arrived
        raise KeyboardInterrupt
    return [worker.result for worker in workers]


def run_independent_workers(
    specs: Sequence[WorkerSpec], gpus: Sequence[Sequence[str]], show: Callable[[int, str], None]
) -> Iterator[tuple[int, CodetuneError | None]]:
    """Runs a worker for each spec, as many at a time as there are groups of `gpus`, whatever becomes of the others;
    yields the index of each that has ended, and its error. `show` gets what it prints, with its index.

    The first SIGINT or SIGTERM is forwarded, no other worker is started, and KeyboardInterrupt is raised after the last
    one has ended; the second one kills them."""
    waiting, free, is_cut_short = deque(enumerate(specs)), deque(gpus), False
    running: dict[int, tuple[_Worker, Sequence[str]]] = {}
    workers: list[_Worker] = []  # of `running`, for the signals
    with _forwarded_signals(workers) as received, _closed_at_the_end(workers):
        while (waiting and not received) or (running and len(received) < 2):
            while waiting and free and not received:
                index, spec = waiting.popleft()
                group = free.popleft()
                running[index] = _Worker.start(replace(spec, gpus=group), 0), group
                workers.append(running[index][0])
            time.sleep(POLL_SECONDS)
            for index in _newly_ended(running, show):
                worker, group = running.pop(index)
                error = _error_of(worker, index, show)
                free.append(group)
                workers.remove(worker)
                worker.close()
                if error is not None and worker.interrupted and received:
                    is_cut_short = True
                else:
                    yield index, error
    if received and (waiting or running or is_cut_short):
        raise KeyboardInterrupt


@contextlib.contextmanager
def _closed_at_the_end(workers: Sequence[_Worker]) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def _newly_ended(running: Mapping[int, tuple[_Worker, Sequence[str]]], show: Callable[[int, str], None]) -> list[int]:
    """Shows what the workers have printed; returns the indices of those that have ended."""
    for index, (worker, _) in running.items():
        worker.poll(lambda rank, progress: None)
        show(index, worker.new_output())
    return [index for index, (worker, _) in running.items() if worker.ended_at is not None]


def _error_of(worker: _Worker, index: int, show: Callable[[int, str], None]) -> CodetuneError | None:
    if worker.process.returncode == 0:
        return None
    if worker.traceback:
        show(index, worker.traceback)
    return worker.failure()


@contextlib.contextmanager
def events_to_command(descriptor: int) -> Iterator[SendEvent]:
    """In a worker: yields the function that sends an event to the command, and exits the process after the block.
    SIGINT and SIGTERM raise KeyboardInterrupt, the death of the command kills the worker, and an error is sent, not
    printed."""
    connection, lock = Connection(descriptor, readable=False), threading.Lock()

    def send(kind: EventKind, value: JSON) -> None:
        with lock:
            connection.send_bytes(json.dumps([kind, value]).encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_die_with_command, args=[os.dup(0)], daemon=True).start()
    empty_standard_input()
    status = 0
    try:
        yield send
    except CodetuneError as error:
        send("error", error_event(error))
        status = error.exit_status
    except Exception:  # noqa: BLE001 - the command decides whether it is the cause, or only follows from it
        send("traceback", traceback.format_exc())
        status = 1
    except KeyboardInterrupt:
        send("interrupted", None)
        status = 130
    exit_process(status)


def error_event(error: CodetuneError) -> JSON:
    return {"kind": type(error).__name__, "message": str(error)}


def exit_process(status: int) -> None:
    """Runs the exit functions, flushes, and exits without tearing Python down: threads of torch that still run then can
    abort the process ("terminate called without an active exception", seen once in some dozen trainings)."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by the caller of the command
            with contextlib.suppress(OSError):  # a reader that is gone
                stream.flush()
    os._exit(status)


def empty_standard_input() -> None:
    """Puts /dev/null in the place of standard input, for this process and its children: a library that asks a question
    reads its end at once, and never what a user or a pipe holds ready."""
    empty = os.open(os.devnull, os.O_RDONLY)
    if empty != 0:  # unless standard input was closed
        os.dup2(empty, 0)
        os.close(empty)


def _die_with_command(lifeline: int) -> None:
    """The standard input that the worker started with is a pipe that the command holds open: it ends when the command
    dies, also of SIGKILL."""
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class _Worker:
    rank: int
    world_size: int
    process: subprocess.Popen[bytes]
    events: Connection
    output: int  # descriptor of a file in memory: what it prints
    shown_bytes: int = 0  # of the output
    result: JSON = None
    error: CodetuneError | None = None
    traceback: str = ""  # of an error that codetune cannot name
    interrupted: bool = False
    failed_at: float | None = None
    ended_at: float | None = None

    @classmethod
    def start(cls, spec: WorkerSpec, local_rank: int) -> _Worker:
        receiver, sender = os.pipe()
        task = WorkerTask(spec.job, sender)
        output = os.memfd_create("codetune worker")
        rank, world_size = spec.node.rank * spec.local_world_size + local_rank, spec.node.count * spec.local_world_size
        process = subprocess.Popen(
            spec.command,
            env=worker_environment(local_rank, spec.local_world_size, spec.node, task)
            if spec.gpus is None
            else lone_environment(task, spec.gpus),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[sender],
            start_new_session=True,  # Ctrl-C reaches the command alone, which forwards it
        )
        os.close(sender)
        return cls(rank, world_size, process, Connection(receiver, writable=False), output)

    def poll(self, on_progress: OnProgress) -> None:
        """Takes its events, then notes its end: in this order, because the last event says why it ended."""
        if self.ended_at is not None:
            return
        status = self.process.poll()
        with contextlib.suppress(EOFError):
            while self.events.poll():
                kind, value = json.loads(self.events.recv_bytes())
                self._take(kind, value, on_progress)
        if status is None:
            return
        self.ended_at = time.monotonic()
        self.interrupted |= status == -signal.SIGINT  # before it could send the event
        if status != 0 and not self.interrupted:
            self.failed_at = self.failed_at or self.ended_at

    def _take(self, kind: EventKind, value: Any, on_progress: OnProgress) -> None:
        match kind:
            case "progress":
                on_progress(self.rank, value)
            case "result":
                self.result = value
            case "error":
                self.error, self.failed_at = _as_error(**value), time.monotonic()
            case "traceback":
                self.traceback, self.failed_at = value, time.monotonic()
            case "interrupted":
                self.interrupted = True

    def new_output(self) -> str:
        """The text printed since the last call, in whole lines while the worker runs."""
        text = os.pread(self.output, 1 << 20, self.shown_bytes)
        if self.ended_at is None:
            text = text[: text.rfind(b"\n") + 1]
        self.shown_bytes += len(text)
        return text.decode(errors="replace")

    def last_output(self) -> str:
        """The end of the text that was not shown yet."""
        start = max(self.shown_bytes, os.fstat(self.output).st_size - SHOWN_BYTES)
        return os.pread(self.output, SHOWN_BYTES, start).decode(errors="replace")

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.events.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def close(self) -> None:
        self.kill()
        os.close(self.output)

    def failure(self) -> CodetuneError:
        if self.error is not None:
            return self.error
        status = self.process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = " (the system does so when memory runs out)" if status == -signal.SIGKILL else ""
        others = "; the others were ended" if self.world_size > 1 else ""
        return WorkerError(
            f"Process {self.rank} of {self.world_size} (pid {self.process.pid}) {how}{hint}{others}. "
            "Expected: all of them to finish. Finished work is kept: fix the cause, and run the command again"
        )


def _watch(
    workers: Sequence[_Worker], on_progress: OnProgress, write_stderr: WriteText, signals: Sequence[int]
) -> None:
    """Returns when all workers have ended, or when those that still run will not end by themselves."""
    while True:
        for worker in workers:
            worker.poll(on_progress)
        # After a failure the output of rank 0 is about its lost connections.
        if all(worker.failed_at is None for worker in workers) and (text := workers[0].new_output()):
            write_stderr(text)
        if all(worker.ended_at is not None for worker in workers) or _must_kill(workers, signals):
            return
        time.sleep(POLL_SECONDS)


def _must_kill(workers: Sequence[_Worker], signals: Sequence[int]) -> bool:
    now = time.monotonic()
    failed = [worker.failed_at for worker in workers if worker.failed_at is not None]
    if failed:
        return now - min(failed) > SECONDS_TO_REPORT
    left = [worker.ended_at for worker in workers if worker.interrupted and worker.ended_at is not None]
    return len(signals) > 1 or (bool(left) and now - min(left) > SECONDS_TO_EXIT)


def _cause(workers: Sequence[_Worker]) -> _Worker | None:
    """The worker that failed first. Those that were killed from outside, or sent a named error, come before those that
    only lost their connection. A worker that lost it to an interrupted one has not failed."""
    interrupted = any(worker.interrupted for worker in workers)

    def order(worker: _Worker) -> tuple[bool, float]:
        named = worker.error is not None or worker.process.returncode == -signal.SIGKILL
        return not named, worker.failed_at or 0.0

    failed = [worker for worker in workers if worker.failed_at is not None and (worker.error or not interrupted)]
    return min(failed, key=order, default=None)


@contextlib.contextmanager
def _forwarded_signals(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """Sends SIGINT to the workers for each SIGINT or SIGTERM of the command; yields the list of those received."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python handles signals in the main thread only
        return

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for worker in workers:
            worker.interrupt()

    earlier = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _as_error(kind: str, message: str) -> CodetuneError:
    error = getattr(errors, kind)(message)
    assert isinstance(error, CodetuneError)
    return error
