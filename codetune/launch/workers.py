"""The worker processes of one command: started, watched and spoken for by the command that the user called.

A worker speaks to its command by lines of JSON through a pipe of its own: what it has done, its result, its error. The
command shows them; what a worker prints goes to standard error for the first one, and for another is shown only where
it dies of something that codetune cannot name.

Why not below torchrun's agent: on an interrupt it gives its workers 30 s, too short for the checkpoint of a large
model, and a worker that failed is told as the agent's own report. Workers get the same environment as from torchrun,
and a command that torchrun has started takes part in the same way (`dispatch.py`)."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codetune import errors
from codetune.errors import CodetuneError, WorkerError
from codetune.launch.environment import Node, WorkerTask, worker_environment

Message = Mapping[str, Any]
Listen = Callable[[int, Message], None]  # rank, what it told
Show = Callable[[str], None]  # text for standard error
Tell = Callable[[Message], None]

# What the lines that are not progress are about.
RESULT, ERROR, TRACEBACK, INTERRUPTED = "result", "error", "traceback", "interrupted"
# After the first worker has failed, the others have this long to tell what they know, and end: most die of its death.
SECONDS_TO_TELL = 1.0
# Workers that were asked to stop write their checkpoint together; one that is still there so long after another has
# gone waits for somebody who will not come.
SECONDS_TO_FOLLOW = 20.0
_KEPT_LINES = 60


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which workers to start: so many on this machine, which is one of several, each with this command and job."""

    command: Sequence[str]
    local_count: int
    where: Node
    job: Path


def run_workers(planned: WorkerSpec, listen: Listen, show: Show) -> list[Any]:
    """Gives what each worker returned, by rank.

    Raises the error of the worker that failed first, after ending the others; KeyboardInterrupt when the user asked to
    stop and all of them have."""
    workers = [_Worker.start(planned, local_rank) for local_rank in range(planned.local_count)]
    try:
        with _asked_to_stop(workers) as asked:
            _watch(workers, listen, show, asked)
    finally:
        for worker in workers:
            worker.end()
    failed = _culprit(workers)
    if failed is not None:
        if failed.error is None:
            show("".join(failed.last_lines) + failed.traceback)
        raise failed.failure()
    if any(worker.process.returncode for worker in workers):  # not where they were done before they heard of it
        raise KeyboardInterrupt
    return [worker.result for worker in workers]


@contextlib.contextmanager
def speaking(descriptor: int) -> Iterator[Tell]:
    """In a worker: what tells the command. Signals interrupt it, whatever the shell had set; it dies with its command;
    and an error that ends it is told, not printed."""

    def tell(message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(descriptor, line) :]

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_die_with_command, daemon=True).start()
    status = 0
    try:
        yield tell
    except CodetuneError as error:
        tell({ERROR: {"kind": type(error).__name__, "message": str(error)}})
        status = error.exit_status
    except Exception:  # noqa: BLE001 - the command decides whether it is the cause, or only follows from it
        tell({TRACEBACK: traceback.format_exc()})
        status = 1
    except KeyboardInterrupt:
        tell({INTERRUPTED: True})
        status = 130
    leave(status)


def leave(status: int) -> None:
    """Ends the process as if it had run out, but without taking Python apart: threads of torch that are still there
    then can abort it ("terminate called without an active exception", seen once in some dozen trainings)."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die_with_command() -> None:
    """Its standard input is a pipe that ends when the command does, whatever ended it."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


class _Pipe:
    """What a worker writes and the command reads, without ever waiting for it."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        os.set_blocking(self.out, False)
        self.is_open = True
        self._half_line = b""

    def lines(self) -> list[bytes]:
        """The whole lines that have come since."""
        text = self._half_line
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.out, 65_536):
                text += piece
            self.is_open = False
        *whole, self._half_line = text.splitlines(keepends=True) or [b""]
        if self._half_line.endswith(b"\n") or not self.is_open:
            whole, self._half_line = [*whole, self._half_line], b""
        return [line for line in whole if line]


@dataclass(slots=True)
class _Worker:
    rank: int
    count: int
    process: subprocess.Popen[bytes]
    told: _Pipe
    printed: _Pipe
    result: Any = None
    error: CodetuneError | None = None
    traceback: str = ""  # of an error that codetune cannot name
    interrupted: bool = False
    failed_at: float | None = None
    ended_at: float | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    @classmethod
    def start(cls, planned: WorkerSpec, local_rank: int) -> _Worker:
        told, printed = _Pipe(), _Pipe()
        count, where = planned.local_count, planned.where
        process = subprocess.Popen(
            planned.command,
            env=worker_environment(local_rank, count, where, WorkerTask(planned.job, told.into)),
            stdin=subprocess.PIPE,
            stdout=printed.into,
            stderr=printed.into,
            pass_fds=[told.into],
            start_new_session=True,  # Ctrl-C reaches the command alone, which passes it on
        )
        for pipe in (told, printed):
            os.close(pipe.into)
        return cls(where.rank * count + local_rank, where.count * count, process, told, printed)

    def look(self, listen: Listen) -> None:
        """Hears what it has told, and notes its end; in this order, for what it told last says why it ended."""
        status = self.process.poll()
        for line in self.told.lines():
            self._hear(json.loads(line), listen)
        if status is None or self.ended_at is not None:
            return
        self.ended_at = time.monotonic()
        self.interrupted |= status == -signal.SIGINT  # before it could tell
        if status != 0 and not self.interrupted:
            self.failed_at = self.failed_at or self.ended_at

    def _hear(self, message: dict[str, Any], listen: Listen) -> None:
        if RESULT in message:
            self.result = message[RESULT]
        elif ERROR in message:
            self.error, self.failed_at = _as_error(**message[ERROR]), time.monotonic()
        elif TRACEBACK in message:
            self.traceback, self.failed_at = message[TRACEBACK], time.monotonic()
        elif INTERRUPTED in message:
            self.interrupted = True
        else:
            listen(self.rank, message)

    def relay(self, show: Show | None) -> None:
        """What it printed is shown, or kept in case it dies."""
        text = [line.decode(errors="replace") for line in self.printed.lines()]
        if show is not None and text:
            show("".join(text))
        else:
            self.last_lines.extend(text)

    def ask_to_stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.told.out)
        os.close(self.printed.out)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def failure(self) -> CodetuneError:
        if self.error is not None:
            return self.error
        status = self.process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = " (the system does so when memory runs out)" if status == -signal.SIGKILL else ""
        return WorkerError(
            f"Process {self.rank} of {self.count} (pid {self.process.pid}) {how}{hint}; the others were ended. "
            "Expected: that all of them finish. Nothing finished is lost: mend the cause, and run the command again"
        )


def _watch(workers: Sequence[_Worker], listen: Listen, show: Show, asked: Sequence[int]) -> None:
    """Returns when all have ended, or when those that remain will not."""
    while True:
        open_pipes = [pipe.out for worker in workers for pipe in (worker.told, worker.printed) if pipe.is_open]
        if open_pipes:
            select.select(open_pipes, [], [], 0.1)
        else:
            time.sleep(0.05)
        for worker in workers:
            worker.look(listen)
        healthy = all(worker.failed_at is None for worker in workers)
        for worker in workers:
            worker.relay(show if healthy and worker is workers[0] else None)
        if all(worker.ended_at is not None for worker in workers) or _is_hopeless(workers, asked):
            return


def _is_hopeless(workers: Sequence[_Worker], asked: Sequence[int]) -> bool:
    now = time.monotonic()
    failed = min((worker.failed_at for worker in workers if worker.failed_at is not None), default=None)
    if failed is not None:
        return now - failed > SECONDS_TO_TELL
    left = min(
        (worker.ended_at for worker in workers if worker.interrupted and worker.ended_at is not None), default=None
    )
    return len(asked) > 1 or (left is not None and now - left > SECONDS_TO_FOLLOW)


def _culprit(workers: Sequence[_Worker]) -> _Worker | None:
    """Whose end is the cause. What was killed from outside, and what can say why it failed, comes before those that
    only lost their connection to it; among equals the first. Who loses it to one that was interrupted has not failed.
    """
    interrupted = any(worker.interrupted for worker in workers)

    def blame(worker: _Worker) -> tuple[bool, float]:
        named = worker.error is not None or worker.process.returncode == -signal.SIGKILL
        return not named, worker.failed_at or 0.0

    failed = [worker for worker in workers if worker.failed_at is not None and (worker.error or not interrupted)]
    return min(failed, key=blame, default=None)


@contextlib.contextmanager
def _asked_to_stop(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """The signals that asked to stop. The first is passed on, and the workers are waited for; the second ends them."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python hands signals to the main thread only
        return

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        for worker in workers:
            worker.ask_to_stop()

    earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _as_error(kind: str, message: str) -> CodetuneError:
    found = getattr(errors, kind)(message)
    assert isinstance(found, CodetuneError)
    return found
