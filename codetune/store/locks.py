"""Locks of the outputs of a run, so that no two processes make the same output at once.

Each lock is an flock on a file in `<run>/.locks/`: the kernel frees it when its process ends, however that happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from codetune.errors import BusyError
from codetune.store.run_directory import Run

SHARED = fcntl.LOCK_SH


@contextlib.contextmanager
def waiting(run: Run, output: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Waits for the lock of `output` and holds it during the block; several readers hold a `SHARED` one together."""
    path = run.directory / ".locks" / output
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def locked(run: Run, output: str, shard: tuple[int, int] | None) -> Iterator[None]:
    """Holds the lock of `output` during the block, without waiting. `shard` (index, count) excludes the same shard and
    every unsharded run of the output, but no other shard. Raises BusyError that names the holder of the lock."""
    with contextlib.ExitStack() as held:
        _lock(held, run, output, SHARED if shard else fcntl.LOCK_EX)
        if shard:
            _lock(held, run, f"{output}-{shard[0]}-of-{shard[1]}", fcntl.LOCK_EX)
        yield


def _lock(held: contextlib.ExitStack, run: Run, name: str, kind: int) -> None:
    path = run.directory / ".locks" / name.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = held.enter_context(path.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"{run.directory}: {name} is being made by {_holder(path)}. Wait for it to end, or end it; then try again"
        ) from None
    # The text serves the message above only; the lock itself ends with its process.
    command = " ".join(["codetune", *sys.argv[1:]])
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%H:%M:%S')}: {command}\n")
    file.flush()


def _holder(path: Path) -> str:
    """The text that the holder of this lock, or of the lock of a shard, wrote into it."""
    for candidate in [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}-*-of-*"))]:
        with candidate.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another run"
    return "another run"
