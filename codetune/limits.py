"""Limits of computing time and memory for a block that works on files or texts of others: a few bytes of them can ask a
library for work without end. Signals reach Python code and its `re`, no other code in C."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPEAT_SECONDS = 1.0  # after the limit, for code that catches the first error
PAGES = Path("/proc/self/statm")  # the first number: pages of address space


@contextmanager
def limited_time(seconds: float, refusal: Callable[[], BaseException]) -> Iterator[None]:
    """Raises `refusal()` after so many seconds of this process's own computing time: other processes, and a machine
    that sleeps, do not count. Only the main thread of a process takes signals; others have no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def refuse(number: int, frame: object) -> None:
        raise refusal()

    earlier = signal.signal(signal.SIGPROF, refuse)
    signal.setitimer(signal.ITIMER_PROF, seconds, REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


@contextmanager
def limited_memory(most_bytes: int) -> Iterator[None]:
    """Lets this process take at most so many bytes more; beyond that Python raises MemoryError. No limit without
    /proc."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    if PAGES.is_file():
        taken = int(PAGES.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limits = [limit for limit in (taken + most_bytes, before) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
