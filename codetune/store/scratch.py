"""Directories for what lives as long as one command. A lock (flock) holds each; it dies with its process, however that
ends, and the next command removes what nobody holds any more."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "codetune-"
LOCK = ".held"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty one below $TMPDIR, but for its lock, gone at the end of the block."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with (directory / "lock").open("w", encoding="utf-8") as file:
            with suppress(OSError):  # a file system without locks: then nobody takes it for abandoned
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Held before it is found under its name, so that nobody sees it free in between.
                (directory / "lock").rename(directory / LOCK)
            yield directory


def _remove_abandoned(place: Path) -> None:
    """Only the user's own. What cannot be removed stays: it is in nobody's way."""
    with suppress(OSError):
        for entry in list(os.scandir(place)):
            if entry.name.startswith(PREFIX) and _is_own_directory(entry) and _is_abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_own_directory(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # gone in the meantime
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_abandoned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
