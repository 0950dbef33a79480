"""Temporary directories of one command. The command holds a lock (flock) on its own directory; the kernel frees it when
the process ends, however that happens, and the next command removes the directories whose lock is free."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "codetune-"
LOCK = ".held"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Gives a new directory below $TMPDIR, empty but for its lock file, and removes it at the end of the block."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with (directory / "lock").open("w", encoding="utf-8") as file:
            with suppress(OSError):  # on a file system without locks LOCK never exists: never taken for abandoned
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Locked before it has its name, so that no other command sees it free in between.
                (directory / "lock").rename(directory / LOCK)
            yield directory


def _remove_abandoned(parent: Path) -> None:
    """Removes the directories of this user whose lock is free. One that cannot be removed stays without an error."""
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            if entry.name.startswith(PREFIX) and _is_abandoned(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # without a lock file, locked, or removed by another command meanwhile
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            with os.fdopen(os.open(Path(entry.path, LOCK), os.O_RDONLY | os.O_NOFOLLOW)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
