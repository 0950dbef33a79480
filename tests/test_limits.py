"""A block of somebody else's work ends at its limit, and leaves none behind."""

from __future__ import annotations

import itertools
import resource
import signal
import threading

import pytest

from codetune.errors import ModelError
from codetune.limits import limited_memory, limited_time


def endless() -> ModelError:
    return ModelError("endless")


def test_work_without_end_is_stopped() -> None:
    with pytest.raises(ModelError, match="endless"), limited_time(0.02, endless):
        all(iter(int, 1) or True for _ in itertools.count())
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL


def test_work_in_another_thread_has_no_limit() -> None:
    def work() -> None:
        with limited_time(0.001, endless):
            done.append(sum(range(10**5)))

    done: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_memory_without_end_is_refused() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), limited_memory(2**26):
        bytearray(2**33)  # more than the process keeps of what it has freed
    assert resource.getrlimit(resource.RLIMIT_AS) == before
