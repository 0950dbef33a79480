"""Inside the sandbox: one program, called with its inputs; what it returns goes out call by call.

EvalPlus' own guard, time limit of a call and swallowed output hold around the program, so that honest ones find what
they find there, and packages that cannot be loaded behind the guard are loaded before it, as they are there. Whatever
happens here proves nothing: the program can change all of it, and gains only the right to send values of its own
choice. Nothing that it could look for is here: no expected outputs, no files, no other process.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from evalplus.eval.utils import TimeoutException, reliability_guard, swallow_io, time_limit

from codetune.sandbox import serialization

# Of a frame: what it is, seconds that the call took, length of what follows.
HEADER = struct.Struct("<cdQ")
LARGEST_FRAME_BYTES = 2**28
# EvalPlus' own process happens to have these, and its guard takes away what they need when they are loaded.
LOADED_BEFORE_GUARD = re.compile(r"\b(?:pandas|pyarrow|datasets)\b")
HELLO, VALUE, RAISED, LATE, NOT_LOADED, NOT_DEFINED = b"h", b"v", b"r", b"t", b"n", b"d"


@dataclass(frozen=True, slots=True)
class Request:
    """A program and how it is to be called."""

    code: str
    entry_point: str
    calls: bytes  # pickled, as several programs get the same
    seconds: tuple[float, ...]  # that each call may take
    patience: int  # times as long by the clock, where that much is bounded in seconds of CPU instead
    memory_bytes: int
    returns: Literal["value", "set"]


def run(request: Request, channel: int) -> None:
    """Sends a frame for every call, up to the first that fails."""
    calls = pickle.loads(request.calls)  # from the judge, before anything of the program has run
    _load_packages(request.code)
    reliability_guard(request.memory_bytes)
    # What the program may replace is held here.
    clock, dump, opaque = time.perf_counter, serialization.encode, serialization.encode_opaque
    function = _load(request, channel)
    if function is None:
        return
    for call, limit in zip(calls, request.seconds, strict=True):
        began = clock()
        try:
            with _limited(limit, request.patience), swallow_io():
                output = function(*call)
        except BaseException as why:  # noqa: BLE001 - a stranger's program
            late = isinstance(why, TimeoutException)
            send(channel, LATE if late else RAISED, clock() - began, type(why).__name__.encode())
            return
        seconds = clock() - began
        try:
            content = dump(_as_set(output) if request.returns == "set" else output)
        except BaseException:  # noqa: BLE001 - a stranger's program
            content = opaque(output)  # too deep, or whatever its class does when it is looked at
        if len(content) > LARGEST_FRAME_BYTES:
            content = opaque(output)
        send(channel, VALUE, seconds, content)


def send(channel: int, kind: bytes, seconds: float, content: bytes) -> None:
    frame = memoryview(HEADER.pack(kind, seconds, len(content)) + content)
    while frame:
        frame = frame[os.write(channel, frame) :]


def receive(channel: int) -> Request:
    (length,) = struct.unpack("<Q", _read(channel, 8))
    request = pickle.loads(_read(channel, length))  # from the judge, before anything of the program has run
    assert isinstance(request, Request)
    return request


def _load_packages(code: str) -> None:
    """Only what the program names: all of them in every zygote would make each fork three times as slow, and leave a
    thread of theirs in it."""
    for name in sorted(set(LOADED_BEFORE_GUARD.findall(code))):
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - not there, or broken: the program will find that out
            continue


def _load(request: Request, channel: int) -> Any:
    names: dict[str, Any] = {}
    try:
        with swallow_io():
            # Without our own `from __future__`, which exec would hand on.
            exec(compile(request.code, "<string>", "exec", dont_inherit=True), names)
    except BaseException as why:  # noqa: BLE001 - a stranger's program
        send(channel, NOT_LOADED, 0.0, type(why).__name__.encode())
        return None
    if request.entry_point not in names:
        send(channel, NOT_DEFINED, 0.0, b"")
        return None
    return names[request.entry_point]


@contextmanager
def _limited(seconds: float, patience: int) -> Iterator[None]:
    with time_limit(seconds * patience):
        if patience == 1:
            yield
            return
        signal.signal(signal.SIGPROF, _out_of_time)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _out_of_time(*_: object) -> None:
    raise TimeoutException("Timed out!")


def _as_set(output: Any) -> Any:
    """An iterator is used up here; what cannot be a set goes out as it is, and is compared in vain."""
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
