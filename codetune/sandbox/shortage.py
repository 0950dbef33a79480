"""Waits while the machine has no process or no memory to give: that says nothing about the program that is judged."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

Started = TypeVar("Started")

SHORTAGES = (errno.EAGAIN, errno.ENOMEM)  # fork(2)
PATIENCE_SECONDS, PAUSE_SECONDS = 30.0, 0.05


def when_available(start: Callable[[], Started], patience_seconds: float = PATIENCE_SECONDS) -> Started:
    """What `start` returns, which starts a process; called again while it fails for want of processes or memory. Raises
    its OSError after `patience_seconds`, and every other one at once."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return start()
        except OSError as why:
            if why.errno not in SHORTAGES or time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)
