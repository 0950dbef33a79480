"""The mistakes codetune can name, and whose they are. Each message has four parts: what was found, where, what was
expected, and the command or edit that mends it. The exit status follows from the class: the user's input is 2, work
that failed is 1, an interrupt is 130 (`cli.py` is the only place that catches them)."""

import errno
import os
from pathlib import Path


class CodetuneError(Exception):
    """Work that failed for a reason codetune can name: network, disk, memory, a second run on the same output."""

    exit_status = 1


class InputError(CodetuneError):
    """The user's input is wrong: usage, project file, data, a model or data name that cannot be resolved."""

    exit_status = 2


class UsageError(InputError):
    """A command line that asks for something impossible (`--shard 8/8`, an unknown benchmark)."""


class ProjectError(InputError):
    """One or more mistakes in the project file or in `--set`; the message lists all of them, one a line."""


class DataError(InputError):
    """A data file, column, benchmark or samples file that cannot be read as what it should be."""


class ModelError(InputError):
    """A model or tokenizer that cannot be found, or must not be loaded (pickle weights, unasked remote code)."""


class StaleError(InputError):
    """An artefact that is missing, or was made from other inputs or settings than the project says now."""


class BusyError(CodetuneError):
    """Another run holds the lock on the same output; the message names it."""


class WorkerError(CodetuneError):
    """A worker process that died without being able to say why; the message says which, and how."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries add pages of advice and traces below it."""
    return str(error).partition("\n")[0]


def writing_failed(why: OSError) -> CodetuneError | None:
    """The error of a disk that is full or locked, or of a file that must not be read; None of any other."""
    if why.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        return None
    if why.filename and Path(why.filename).exists() and not os.access(why.filename, os.R_OK):
        return InputError(
            f"{why.filename} cannot be read: {why.strerror}. Allow reading it, then run the same command again: "
            f"chmod u+r {why.filename}"
        )
    place = f" ({why.filename})" if why.filename else ""
    return CodetuneError(
        f"writing failed: {why.strerror}{place}. Nothing that was finished is lost. Make room or allow writing, then "
        "run the same command again"
    )
