"""Starts a zygote in one of the tiers, sends it one program at a time, and reads what the program's calls returned.

This is the trusted side. A program runs in a fork of the zygote, which is killed at its deadline or at the end of the
`with` block. What arrives is bounded in bytes and not decoded here, but by `serialization.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from codetune.sandbox.confinement import SCRATCH
from codetune.sandbox.program import (
    CONFINED,
    HEADER,
    MAX_MESSAGE_BYTES,
    PATIENCE,
    ExecutionRequest,
    Harness,
    do_nothing,
)
from codetune.sandbox.shortage import when_available
from codetune.sandbox.tiers import TIERS, SandboxError, Tier
from codetune.sandbox.zygote import ENDED, KILLED, READY, StartOptions

ZYGOTE = "import sys; sys.path += sys.argv.pop(1).split(':'); from codetune.sandbox.zygote import main; main()"
LIBRARY_PATH = "LD_LIBRARY_PATH"  # without it some interpreters do not start
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
MAX_BYTES = 2**30  # of all messages of one program
FIRST_UNUSED_USER_ID, UNUSED_USER_IDS = 2_000_000_000, 100_000_000
UTIME = 11  # of the fields of /proc/PID/stat after the name
OOM_SCORE = Path("/proc/self/oom_score_adj")
START_SECONDS, END_SECONDS = 60, 30
DEATH_SECONDS = 1.0  # for a process that has closed its channel to be gone: its memory is freed last
LEAST_WAIT_SECONDS = 0.01  # the scheduler counts in hundredths of a second
NO_HARNESS = Harness(guard=do_nothing, streams=nullcontext)


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call, as the program's process reports it; untrusted."""

    kind: bytes
    seconds: float
    content: bytearray


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """There are no further reports."""

    reason: Literal["died", "timeout", "starved", "invalid message"]  # starved: it waited for a CPU most of the time


@dataclass(slots=True)
class RunningProgram:
    """It has `seconds` by the clock. Beyond, and up to `PATIENCE` times as long, it goes on if it has not computed as
    long, and if the rest of the time is what it waited for a CPU."""

    channel: socket.socket
    pid: int
    pidfd: int
    seconds: float
    began: float  # by time.monotonic
    received_bytes: int = 0
    wait_before: float = 0.0  # seconds without a CPU while the process was confined
    has_died: bool = False  # before it was ended
    # Known after the `with` block: a signal has killed it, or its zygote, as the kernel does where memory runs out. A
    # program can do so to itself.
    was_killed: bool = False

    def reports(self) -> Iterator[CallReport | ProgramEnded]:
        """A report for each call, as it arrives; after the last one, `ProgramEnded` without end."""
        while True:
            try:
                yield self._next()
            except TimeoutError:
                yield ProgramEnded("starved" if self._elapsed() >= PATIENCE * self.seconds else "timeout")
            except (EOFError, ConnectionResetError):
                self.has_died = self.has_died or bool(select.select([self.pidfd], [], [], DEATH_SECONDS)[0])
                yield ProgramEnded("died")

    def cpu_wait_seconds(self) -> float:
        """The seconds that the main thread was ready to run while other processes had the CPU, as the scheduler counts
        them. It may have waited for the program's own threads instead as long as those ran, so that is subtracted; and
        what it waited before it got its program."""
        try:
            return seconds_without_cpu(self._statistics("schedstat"), self._statistics("stat")) - self.wait_before
        except OSError:  # the kernel does not count, or the process has ended
            return 0.0

    def _statistics(self, name: str) -> str:
        return Path("/proc", str(self.pid), name).read_text(encoding="ascii", errors="replace")

    def _computed_seconds(self) -> float:
        try:
            return seconds_of_all_threads(self._statistics("stat"))
        except OSError:
            return 0.0

    def _next(self) -> CallReport | ProgramEnded:
        kind, seconds, length = HEADER.unpack(self._receive(HEADER.size))
        self.received_bytes += length
        if length > MAX_MESSAGE_BYTES or self.received_bytes > MAX_BYTES:
            return ProgramEnded("invalid message")
        return CallReport(kind, seconds, self._receive(length))

    def _receive(self, length: int) -> bytearray:
        content = bytearray(length)
        view = memoryview(content)
        while view:
            left = self._seconds_left()
            self.channel.settimeout(max(left, LEAST_WAIT_SECONDS))  # what has arrived is read at any time
            try:
                count = self.channel.recv_into(view)
            except TimeoutError:
                if left <= 0:
                    raise
                continue
            if not count:
                raise EOFError
            view = view[count:]
        return content

    def _seconds_left(self) -> float:
        """After so many seconds the limits have to be looked at again."""
        elapsed = self._elapsed()
        if elapsed < self.seconds:
            return self.seconds - elapsed
        left = (self.seconds - self._computed_seconds()) / (os.cpu_count() or 1)  # were all of them the program's
        left = min(left, self.seconds - (elapsed - self.cpu_wait_seconds()))
        return min(left, PATIENCE * self.seconds - elapsed)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began


@dataclass(slots=True)
class Sandbox:
    """A zygote and the control socket to it; programs run in it one after the other."""

    tier: Tier
    harness: Harness
    process: subprocess.Popen[bytes]
    control: socket.socket
    broken: bool = False  # it has ended, and runs nothing more

    @classmethod
    def start(cls, tier_name: str, directory: Path, harness: Harness) -> Self:
        """Starts a zygote. `directory` is empty and used by nothing else. Raises SandboxError where the tier does not
        work here."""
        tier = TIERS[tier_name]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = _start_zygote(tier, directory, harness, theirs.fileno())
            except (OSError, SandboxError) as why:
                ours.close()
                raise SandboxError(f"{tier_name}: {why}") from why
        sandbox = cls(tier, harness, process, ours)
        answer = sandbox._answer(START_SECONDS)
        if answer != READY:
            sandbox.close()
            raise SandboxError(f"{tier_name}: {answer.decode(errors='replace') or 'it could not be started'}")
        return sandbox

    @contextmanager
    def run(self, request: ExecutionRequest, seconds: float) -> Iterator[RunningProgram]:
        """Runs a program for at most `seconds`, as `RunningProgram` counts them. At the end of the block it is killed,
        and the files that it wrote are removed. Raises SandboxError where its process could not be confined."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with ours:
            with theirs:
                socket.send_fds(self.control, [b"run"], [theirs.fileno()])
            program = None
            try:
                pid = _receive_process_id(ours)
                program = RunningProgram(ours, pid, os.pidfd_open(pid), seconds, time.monotonic())
                program.wait_before = program.cpu_wait_seconds()
                content = pickle.dumps((request, self.harness), protocol=5)
                with suppress(BrokenPipeError, ConnectionResetError):  # already killed: the first report says so
                    ours.settimeout(START_SECONDS)
                    ours.sendall(struct.pack("<Q", len(content)) + content)
                yield program
            finally:
                self._end(program)

    def close(self) -> None:
        self.broken = True
        self.control.close()
        self.process.kill()
        self.process.wait()

    def _end(self, program: RunningProgram | None) -> None:
        if program is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(program.pidfd, signal.SIGKILL)
            os.close(program.pidfd)
        answer = self._answer(END_SECONDS)
        if program is not None:
            program.was_killed = answer != ENDED and program.has_died
        if answer not in (ENDED, KILLED):  # the next program needs a new zygote
            self.close()

    def _answer(self, seconds: float) -> bytes:
        """The answer of the zygote; empty if it has died or takes too long."""
        self.control.settimeout(seconds)
        try:
            return self.control.recv(4096)
        except (TimeoutError, ConnectionResetError):
            return b""


def seconds_without_cpu(main_thread: str, process: str) -> float:
    """The time that the main thread waited, less that in which the other threads ran: /proc/PID/schedstat and
    /proc/PID/stat, whose times are those of all threads. Documentation: proc_pid_stat(5)."""
    running, waiting, _ = (int(nanoseconds) / 1e9 for nanoseconds in main_thread.split())
    return waiting - max(seconds_of_all_threads(process) - running, 0.0)


def seconds_of_all_threads(process: str) -> float:
    """The time that a process has computed, of its /proc/PID/stat."""
    user, system = process.rpartition(")")[2].split()[UTIME : UTIME + 2]  # the name before it can hold spaces
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def readable_paths() -> list[Path]:
    """The standard library, installed packages and the system's libraries. No path lies below another."""
    base = Path(sys.base_prefix)
    own = [sysconfig.get_path("stdlib"), str(base / "lib"), str(base / sys.platlibdir), *_package_paths()]
    candidates = [*own, *os.environ.get(LIBRARY_PATH, "").split(":"), *SYSTEM_LIBRARIES, *SYSTEM_FILES]
    found = dict.fromkeys(path for path in map(Path, candidates) if path.is_absolute() and path.exists())
    return [path for path in found if not any(other in path.parents for other in found)]


def _package_paths() -> list[str]:
    """The directories of installed packages on `sys.path`; never the user's own directories."""
    names = ("site-packages", "dist-packages", "lib-dynload")
    return [str(path.resolve()) for path in map(Path, sys.path) if path.name in names]


def _start_zygote(tier: Tier, directory: Path, harness: Harness, descriptor: int) -> subprocess.Popen[bytes]:
    command, environment = _command(tier, descriptor, harness), _environment(tier, directory)
    with _killed_first():
        return when_available(
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                cwd=directory,
                env=environment,
            )
        )


@contextmanager
def _killed_first() -> Iterator[None]:
    """Where memory runs out, the kernel kills processes that were started in the block first. Otherwise it kills the
    largest one, which can be this one. Documentation: proc_pid_oom_score_adj(5)."""
    before = OOM_SCORE.read_text(encoding="ascii")
    OOM_SCORE.write_text("1000", encoding="ascii")
    try:
        yield
    finally:
        OOM_SCORE.write_text(before, encoding="ascii")


def _command(tier: Tier, descriptor: int, harness: Harness) -> list[str]:
    python = Path(sys.executable).resolve()
    readable = readable_paths()
    preload = [harness.guard.__module__, harness.streams.__module__]
    user_id = FIRST_UNUSED_USER_ID + secrets.randbelow(UNUSED_USER_IDS)
    options = StartOptions(descriptor, user_id, tier.mechanisms, preload, [str(path) for path in readable])
    import_paths = ":".join([*_package_paths(), str(tier.code)])
    zygote = [str(python), "-P", "-S", "-c", ZYGOTE, import_paths, json.dumps(asdict(options))]
    return [*(tier.wrapper([python, *readable]) if tier.wrapper else []), *zygote]


def _environment(tier: Tier, directory: Path) -> Mapping[str, str]:
    """Nothing of the user's but LD_LIBRARY_PATH. Hashes are seeded, so that results repeat; numerical libraries get one
    thread, as a fork keeps only one."""
    home = str(SCRATCH if tier.mechanisms and tier.mechanisms.scratch else directory)
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": home,
        "TMPDIR": home,
        "PYTHONHASHSEED": "0",
        **({LIBRARY_PATH: os.environ[LIBRARY_PATH]} if LIBRARY_PATH in os.environ else {}),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }


def _receive_process_id(channel: socket.socket) -> int:
    """The id of the program's process in this namespace, as the kernel certifies it with the process's first message,
    which says that it is confined. Raises SandboxError where there is no such message."""
    channel.settimeout(START_SECONDS)
    try:
        content, ancillary, _, _ = channel.recvmsg(HEADER.size, socket.CMSG_SPACE(12))
    except (TimeoutError, ConnectionResetError):
        content, ancillary = b"", []
    if content != HEADER.pack(CONFINED, 0.0, 0) or not ancillary:
        raise SandboxError("a process could not be confined, so it was given nothing to run")
    return int(struct.unpack("3i", ancillary[0][2][:12])[0])
