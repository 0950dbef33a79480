from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from codetune.sandbox.shortage import when_available


def fail_first(*numbers: int) -> Iterator[int]:
    yield from numbers
    while True:
        yield 0


def start(errors: Iterator[int]) -> str:
    if number := next(errors):
        raise OSError(number, os.strerror(number))
    return "started"


def test_a_shortage_of_processes_or_memory_is_waited_out() -> None:
    errors = fail_first(errno.EAGAIN, errno.ENOMEM)
    assert when_available(lambda: start(errors)) == "started"


@pytest.mark.parametrize(("number", "patience"), [(errno.EAGAIN, 0.1), (errno.ENOENT, 9)])
def test_a_shortage_that_lasts_and_any_other_error_are_raised(number: int, patience: float) -> None:
    errors = fail_first(*[number] * 99)
    with pytest.raises(OSError, match=os.strerror(number)):
        when_available(lambda: start(errors), patience)
