"""Writes of files that are whole or absent: a temporary name, fsync, then a rename; and removal. The one home of fsync.

A reader, and a process that starts after a crash or a loss of power, sees the old content or the new one and never a
part of it. Knows nothing of what the files hold."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path


def replacing(target: Path) -> AbstractContextManager[Path]:
    """Gives a temporary path beside `target` (a file or a directory), which replaces `target` when the block ends
    without an error. The caller holds the lock of `target`: a temporary path of a killed process is removed first.
    Raises OSError that names `target` where its file system refuses."""
    return _replacing(target, target.with_name(f".{target.name}.tmp"))


def write_text(path: Path, text: str) -> None:
    """Replaces a small text file (UTF-8); see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a small file. Several processes may write it at once, also on machines that share the directory (their
    process ids may be equal): the last one wins."""
    own = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with _replacing(path, own) as temporary:
        temporary.write_bytes(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a text file by streamed lines; the caller holds the lock of `path`."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def append_to_disk(file: FileIO, content: bytes) -> None:
    """Appends to an unbuffered file; when this returns, `content` would survive a loss of power. Raises OSError that
    names the file."""
    unwritten = memoryview(content)
    with naming(Path(str(file.name))):
        while unwritten:  # an unbuffered write may write a part only, on a disk that fills up
            unwritten = unwritten[file.write(unwritten) :]
        os.fsync(file.fileno())


def flush_to_disk(path: Path) -> None:
    """Returns when the content of a file, or the entries of a directory, would survive a loss of power (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(directory: Path) -> None:
    """Makes the directory where it is missing. Raises OSError that names it where no file can be written there."""
    write_text(directory / ".writable", "")
    remove(directory / ".writable")


def grant_usual_access(path: Path) -> None:
    """Gives a file the mode of a new one where only its owner may read it: safetensors 0.8 writes such files."""
    mask = os.umask(0)
    os.umask(mask)
    if path.stat().st_mode & 0o777 == 0o600:
        path.chmod(0o666 & ~mask)


def remove(path: Path) -> None:
    """Deletes a file, a link or a directory with all it holds; a path that does not exist is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file name `path` to an OSError of the block that has none, as those of `write` have."""
    try:
        yield
    except OSError as why:
        why.filename = why.filename or str(path)
        raise


@contextmanager
def _replacing(target: Path, temporary: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        with naming(target):
            yield temporary
        for path in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            if path.is_file():
                grant_usual_access(path)
                flush_to_disk(path)
        if temporary.is_dir():
            remove(target)
        temporary.replace(target)
        flush_to_disk(target.parent)
    finally:
        remove(temporary)
