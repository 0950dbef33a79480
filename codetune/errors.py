"""The mistakes that codetune can name. Each message has four parts: what was found, where, what was expected, and the
command or edit that fixes it. The class decides the exit status: 2 for wrong input, 1 for work that failed; `cli.py`,
the only place that catches these errors, gives 130 to an interrupt.
"""

import errno
import os
from pathlib import Path


class CodetuneError(Exception):
    """Work that failed for a known reason: network, disk, memory, a second run with the same output."""

    exit_status = 1


class InputError(CodetuneError):
    """Wrong input: usage, project file, data, or a name of a model or data set that cannot be resolved."""

    exit_status = 2


class UsageError(InputError):
    """A command line that asks for something impossible (`--shard 8/8`, an unknown benchmark)."""


class ProjectError(InputError):
    """One or more mistakes in the project file or in `--set`; the message lists all of them, one a line."""


class DataError(InputError):
    """A data set, benchmark or samples file with content that cannot be read, or without an expected column."""


class ModelError(InputError):
    """A model or tokenizer that cannot be found, or must not be loaded (pickle weights, code of its own)."""


class StaleError(InputError):
    """An artefact that is missing, or was made from other inputs or settings than the project's present ones."""


class BusyError(CodetuneError):
    """Another run holds the lock on the same output; the message names it."""


class WorkerError(CodetuneError):
    """A worker process that ended without an error message; ours says which one, and by which signal or status."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries add pages of advice and traces below it."""
    return str(error).partition("\n")[0]


def unusable_directory(directory: Path, why: OSError, advice: str) -> CodetuneError:
    """The error for a directory of the user's that cannot be made or written to: a file in its place or above it, a
    link to nothing, a name that is too long, no permission. Of a full disk the error of `writing_failed`."""
    if why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and (failed := writing_failed(why)):
        return failed
    there = next((path for path in (directory, *directory.parents) if os.path.lexists(path)), directory)
    found = f"{there} {'is a link to nothing' if there.is_symlink() else 'is a file'}"
    if os.access(there, os.F_OK) and there.is_dir():
        found = f"{why.filename or directory}: {why.strerror}"
    return InputError(f"{found}. Expected: a directory that you may write to. {advice}")


def writing_failed(why: OSError) -> CodetuneError | None:
    """The error for a full or read-only disk, a file without read permission, or a name that no file can have; None for
    any other OSError."""
    if why.errno == errno.ENAMETOOLONG:
        return InputError(f"{why.filename} is not a possible path: {why.strerror}. Name another file")
    if why.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        return None
    paths = [Path(why.filename), *Path(why.filename).parents] if why.filename else []
    closed = next((path for path in paths if os.path.lexists(path) and not os.access(path, os.R_OK)), None)
    if closed is not None:
        return InputError(
            f"{closed} cannot be read: {why.strerror}. Allow reading it, then run the same command again: "
            f"chmod u+rX {closed}"
        )
    location = f" ({why.filename})" if why.filename else ""
    return CodetuneError(
        f"Writing failed: {why.strerror}{location}. Finished work is kept. Free some space or allow writing, "
        "then run the same command again"
    )
