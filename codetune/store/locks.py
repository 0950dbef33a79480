"""Locks of the outputs of a run, so that no two processes make the same output at once.

Each lock is an flock on a file in `<run>/.locks/`: the kernel frees it when its process ends, however that happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from codetune.errors import BusyError
from codetune.store.run_directory import Run

SHARED = fcntl.LOCK_SH
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.01


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that has a lock, as it wrote of itself."""

    pid: int | None  # None where its record cannot be read
    host: str
    since: str  # time of day
    command: str

    @property
    def named(self) -> str:
        return f"Process {self.pid} on {self.host}" if self.pid is not None else "Another process"

    @property
    def details(self) -> str:
        return f"since {self.since}: {self.command}" if self.pid is not None else "it has not said more yet"


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


def holders(run: Run, output: str) -> list[LockHolder]:
    """The processes that make `output` now: the one that has its lock, or those that have the locks of its shards.
    Writes nothing."""
    path = _lock_file(run, output)
    found = [_holder(each) for each in [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}-*-of-*"))]]
    return [holder for holder in found if holder is not None]


def locked_shards(run: Run, output: str) -> list[tuple[int, int]]:
    """The shards of `output` that have, or once had, a lock of their own, in order."""
    name = _lock_file(run, output).name
    files = (run.directory / ".locks").glob(f"{glob.escape(name)}-*-of-*")
    found = [re.fullmatch(r"(\d+)-of-(\d+)", path.name.removeprefix(f"{name}-")) for path in files]
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def _lock(held: contextlib.ExitStack, run: Run, name: str, kind: int) -> None:
    path = _lock_file(run, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = held.enter_context(path.open("a+", encoding="utf-8"))
    if not _took_lock(file, kind):
        first = next(iter(holders(run, name)), None)
        raise BusyError(
            f"{first.named if first else 'Another process'} is already running {name} in {run.directory}"
            f"{f' ({first.details})' if first else ''}. Wait until it ends, or end it; then run the same command again"
        )
    # The text serves messages only; the lock itself ends with its process.
    command = " ".join(["codetune", *sys.argv[1:]])
    holder = LockHolder(os.getpid(), os.uname().nodename, time.strftime("%H:%M:%S"), command)
    file.truncate(0)
    file.write(json.dumps(asdict(holder)) + "\n")
    file.flush()


def _lock_file(run: Run, name: str) -> Path:
    return run.directory / ".locks" / name.replace("/", "-")


def _took_lock(file: IO[str], kind: int) -> bool:
    """Tries for a moment: `holders` takes a free lock for an instant, to see that it is free."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            return True
    return False


def _holder(path: Path) -> LockHolder | None:
    """The record of the process that has this lock for itself; None where none has, or where shards share it."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError, TypeError):  # of a process that has not written its record yet
                return LockHolder(**json.loads(file.read()))
            return LockHolder(None, "", "", "")
    return None
