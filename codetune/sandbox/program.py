"""Runs one program inside the sandbox: calls its function with each input, and sends a message for each call.

A message is a header (kind, seconds, length) and a content. It proves nothing: the program can change all that happens
in this process, which has no expected outputs, no readable files of the user and no contact with other processes.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from codetune.sandbox import serialization
from codetune.sandbox.confinement import lower_limit

HEADER = struct.Struct("<cdQ")  # kind, seconds that the call took, bytes of content
MAX_MESSAGE_BYTES = 2**28
LEAST_SECONDS = 1e-3  # of a timer; 0 would stop it
CONFINED, VALUE, RAISED, TIMED_OUT, NOT_LOADED, NOT_DEFINED = b"h", b"v", b"r", b"t", b"n", b"d"
COMPUTED, WAITED = b"computed", b"waited"  # contents of TIMED_OUT: what most of the call's time went into
# A limit of wall-clock time leaves out, up to so many times as long, what a program waits for a CPU.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class Harness:
    """The functions around every program of a zygote. Functions of installed packages: they are pickled by name, and
    their modules are imported once, in the zygote."""

    guard: Callable[[], object]  # called once, before the program is loaded
    streams: Callable[[], AbstractContextManager[object]]  # entered while the program is loaded, and for each call


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """A program, and how it is called."""

    code: str
    entry_point: str
    calls: bytes  # a pickled list of argument lists; in bytes, as several programs get the same
    seconds: tuple[float, ...]  # time limit of each call
    # 1: limits are wall-clock time without that of waiting for a CPU. More: limits of calls are CPU time, and this many
    # times as long by the clock; that of the whole run stays as it is.
    wall_factor: int
    memory_bytes: int
    returns: Literal["value", "set"]
    imports: tuple[str, ...]  # modules imported before the guard is called, after which they cannot be; if installed


class CallTimeoutError(Exception):
    """A call used up its time: it has `computed` as long, or waited, asleep or for a CPU."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed


def do_nothing() -> None:
    """The guard of a harness that has none."""


def run(request: ExecutionRequest, harness: Harness, channel: int) -> None:
    """Sends a message for each call, up to the first call that fails."""
    calls = pickle.loads(request.calls)  # from the launcher, before any of the program has run
    for name in request.imports:
        with suppress(BaseException):  # missing or broken packages raise anything; the program's own import will too
            importlib.import_module(name)
    for limit_kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        lower_limit(limit_kind, request.memory_bytes)
    harness.guard()
    # Held in local variables, as the program may replace the attributes of modules.
    clock, encode, encode_opaque = time.perf_counter, serialization.encode, serialization.encode_opaque
    function = _load(request, harness, channel)
    if function is None:
        return
    for call, limit in zip(calls, request.seconds, strict=True):
        start = clock()
        try:
            with _time_limit(limit, request.wall_factor), harness.streams():
                output = function(*call)
        except BaseException as error:  # noqa: BLE001 - raised by an untrusted program
            _send_error(channel, clock() - start, error)
            return
        seconds = clock() - start
        try:
            content = encode(_to_set(output) if request.returns == "set" else output)
        except BaseException:  # noqa: BLE001 - too deep, or raised by methods of the program's own class
            content = encode_opaque(output)
        send(channel, VALUE, seconds, content if len(content) <= MAX_MESSAGE_BYTES else encode_opaque(output))


def send(channel: int, kind: bytes, seconds: float, content: bytes) -> None:
    """Writes one message."""
    message = memoryview(HEADER.pack(kind, seconds, len(content)) + content)
    while message:
        message = message[os.write(channel, message) :]


def receive(channel: int) -> tuple[ExecutionRequest, Harness]:
    """Reads what the launcher sends, before any of the program has run. Raises EOFError where the launcher is gone."""
    (length,) = struct.unpack("<Q", _read(channel, 8))
    request, harness = pickle.loads(_read(channel, length))
    assert isinstance(request, ExecutionRequest)
    assert isinstance(harness, Harness)
    return request, harness


def _load(request: ExecutionRequest, harness: Harness, channel: int) -> Callable[..., object] | None:
    names: dict[str, Any] = {}
    try:
        with harness.streams():
            # dont_inherit: the program does not get this module's `from __future__` imports.
            exec(compile(request.code, "<string>", "exec", dont_inherit=True), names)
    except BaseException as error:  # noqa: BLE001 - raised by an untrusted program
        send(channel, NOT_LOADED, 0.0, type(error).__name__.encode())
        return None
    if request.entry_point not in names:
        send(channel, NOT_DEFINED, 0.0, b"")
        return None
    function: Callable[..., object] = names[request.entry_point]
    return function


def _send_error(channel: int, seconds: float, error: BaseException) -> None:
    if isinstance(error, CallTimeoutError):
        send(channel, TIMED_OUT, seconds, COMPUTED if error.computed else WAITED)
    else:
        send(channel, RAISED, seconds, type(error).__name__.encode())


@contextmanager
def _time_limit(seconds: float, wall_factor: int) -> Iterator[None]:
    """A program that has not slept, and not computed as long, has waited for a CPU: it goes on. What one that slept has
    waited for is known outside (`RunningProgram.cpu_wait_seconds`)."""
    began, computed_before, slept_before = time.monotonic(), time.process_time(), _times_asleep()

    def stop(*_: object) -> None:
        computed, elapsed = time.process_time() - computed_before, time.monotonic() - began
        if computed >= seconds or wall_factor > 1 or elapsed >= PATIENCE * seconds or _times_asleep() > slept_before:
            raise CallTimeoutError(computed >= seconds)
        signal.setitimer(signal.ITIMER_REAL, max(seconds - computed, LEAST_SECONDS))

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds * wall_factor)
    if wall_factor > 1:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _times_asleep() -> int:
    """How often a thread of this process has given up its CPU by itself."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _to_set(output: Any) -> object:
    """A set of what an iterable holds; an output that cannot become a set is sent as it is, and equals no set."""
    try:
        return set(output)
    except TypeError:
        return output


def _read(channel: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(channel, min(length, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
