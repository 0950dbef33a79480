"""Files that users name: only plain files are opened, and what they unpack to has a limit.

Opening a FIFO, a socket or a device can wait for ever; a gzip of kilobytes can unpack to gigabytes. The limits below
are far above real data. Of what the files hold it knows lines, and what one that is too long begins with."""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from codetune.errors import DataError, InputError, first_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MIB = 1 << 20
ROW_BYTES = 32 * MIB  # of a line or a row; the longest rows of instruction sets have a few hundred kilobytes
UNPACKED_BYTES = 1024 * MIB  # that any compressed file may unpack to ...
UNPACKED_RATIO = 100  # ... and a large one, so many times its size; source code and prose unpack to 3 to 10 times
LIST_UNDER_KEY = re.compile(rb'\s*\{\s*"([^"\\]{1,60})"\s*:\s*\[')  # begins a line
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_plain_file(path: Path, error: type[InputError] = DataError) -> None:
    """Raises `error` where `path` is there and no plain file. Opens nothing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError as why:
        raise error(f"{str(path)!r} cannot be a path ({first_line(why)}). Expected: a file. Fix the name.") from why
    except OSError as why:
        raise error(f"{path} cannot be read: {why.strerror}. Expected: a plain file. Fix the name.") from why
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no plain file")
        remedy = "Name a file" if kind == "a directory" else "Write what it gives to a file, and name that"
        raise error(f"{path} is {kind}. Expected: a plain file. {remedy}.")


def open_limited(path: Path, name: str, is_gzip: bool) -> IO[bytes]:
    """The content of a plain file, unpacked. Reading raises DataError where it unpacks to more than the limit; `name`
    stands for the file in messages."""
    require_plain_file(path)
    if not is_gzip:
        return path.open("rb")
    return cast("IO[bytes]", io.BufferedReader(_LimitedStream(path, UnpackingLimit(path, name)), MIB))


def read_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of a stream. Raises DataError for one of more than ROW_BYTES, before it is read whole."""
    number = 0
    while line := stream.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES:
            raise too_long(f"{name}:{number}", line)
        yield line


def too_long(position: str, beginning: bytes = b"") -> DataError:
    """The error for a line or a row of more than ROW_BYTES, which has this beginning."""
    remedy = "Delete it, or divide it into rows."
    if (found := LIST_UNDER_KEY.match(beginning)) is not None:
        key = found[1].decode(errors="replace")
        remedy = f"It is an object with a list under {key}: if that holds the rows, write it alone into a .json file."
    return DataError(
        f"{position} is longer than {ROW_BYTES // MIB} MiB. Expected: one row, of some kilobytes. {remedy}"
    )


class UnpackingLimit:
    """Counts what a compressed file unpacks to."""

    def __init__(self, path: Path, name: str) -> None:
        self._name, self._size = name, path.stat().st_size
        self._left = max(UNPACKED_BYTES, UNPACKED_RATIO * self._size)

    def count(self, unpacked: int) -> None:
        """Raises DataError once all that was counted is more than the file may unpack to."""
        self._left -= unpacked
        if self._left < 0:
            raise DataError(
                f"{self._name} has {self._size:,} bytes and unpacks to more than {UNPACKED_BYTES / MIB:,.0f} MiB and "
                f"more than {UNPACKED_RATIO} times its size. Expected: a data file, not the same bytes over and over. "
                "If it is what you mean, unpack it first."
            )


class _LimitedStream(io.RawIOBase):
    def __init__(self, path: Path, limit: UnpackingLimit) -> None:
        self._unpacked, self._limit = gzip.GzipFile(path), limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._unpacked.readinto(buffer)
        self._limit.count(count)
        return count

    def close(self) -> None:
        self._unpacked.close()
        super().close()


def matching_paths(pattern: str) -> Iterator[Path]:
    """The paths that match a glob, in no order; some may come twice. `**` is any directories below; hidden ones and
    links are left out, for a link to a directory above (/proc has thousands) could be followed without end."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(pattern))  # noqa: PTH207 - pathlib refuses absolute patterns
        return
    before, after = parts[: parts.index("**")], parts[parts.index("**") + 1 :] or ("*",)
    for start in matching_paths(str(Path(*before))) if before else (Path(),):
        for directory, names, _ in os.walk(start):
            names[:] = [name for name in names if not name.startswith(".")]
            yield from matching_paths(str(Path(glob.escape(directory), *after)))
