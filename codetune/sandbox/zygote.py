"""Inside the sandbox: the process that programs are forked from, one at a time; `launcher.py` starts it.

Python, numpy and EvalPlus' guard are loaded once; a fork of that takes milliseconds, where a fresh interpreter takes a
hundred. This process is trusted and never reads a byte of a program: it takes a socket, forks, waits, and says that the
child is gone. The child confines itself before it reads what it is to run, in this order: descriptors closed, Landlock,
limits, seccomp; what fails there ends the child, unheard. There is no way back out of any of it.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.sandbox import kernel, landlock, namespaces, program, seccomp

LARGEST_FILE_BYTES = 64 * 2**20
MOST_OPEN_FILES = 256
MOST_THREADS_ALONE = 256  # of a user that exists for this process only
MOST_THREADS = 4096  # together with all that the same user runs elsewhere
FIRST_UNUSED_USER = 2_000_000_000
READY = b"ready"


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the forks of this process still have to put on."""

    rules: int | None  # descriptor of the Landlock rules
    seccomp: bool
    most_threads: int | None
    scratch: Path | None


def main() -> None:
    """Arguments: descriptor of the control socket, tier, paths that stay readable."""
    descriptor, tier, *paths = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    try:
        confinement = _enter(tier, [Path(path) for path in paths])
    except OSError as why:
        control.send(f"{tier}: {why}".encode())
        return
    gc.freeze()  # else the first collection in every fork would copy all that is loaded
    control.send(READY)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:  # the judge is gone, or done
            return
        child = os.fork()
        if child == 0:
            _be_the_program(descriptors[0], confinement)
        os.close(descriptors[0])
        os.waitpid(child, 0)
        if confinement.scratch:
            _empty(confinement.scratch)
        control.send(b".")


def _enter(tier: str, readable: Sequence[Path]) -> Confinement:
    """Goes where the tier wants this process to be. Returns in the process that will fork programs."""
    kernel.die_with_parent()
    unused_user = FIRST_UNUSED_USER + os.getpid() % 100_000_000  # another one in every worker
    if tier == "none":
        return Confinement(None, seccomp=False, most_threads=None, scratch=_go_to(Path(tempfile.mkdtemp(dir="."))))
    if not seccomp.is_supported():
        raise OSError("no table of system calls for this kind of processor")
    if tier == "namespaces":
        namespaces.enter(readable, Path(tempfile.mkdtemp(dir=".")).absolute())
        _become_process_one()
    alone = _leave_root(unused_user, readable)
    kernel.drop_capabilities()
    kernel.gain_no_privileges()
    # These two last: the kernel forgets them when the user changes.
    kernel.hide_from_own_user()
    kernel.die_with_parent()
    tempfile.tempdir = str(Path.cwd())  # some packages insist on one, and need not write to it
    scratch = None if tier == "landlock" else _go_to(namespaces.SCRATCH)
    return Confinement(
        _rules(tier, readable, scratch),
        seccomp=True,
        most_threads=MOST_THREADS_ALONE if alone else MOST_THREADS,
        scratch=scratch,
    )


def _go_to(scratch: Path) -> Path:
    os.chdir(scratch)
    tempfile.tempdir = str(Path.cwd())
    return Path.cwd()


def _rules(tier: str, readable: Sequence[Path], scratch: Path | None) -> int | None:
    """Where a new root hides the files already, Landlock is the second wall, and a kernel may lack it."""
    try:
        return landlock.ruleset(readable, [Path(os.devnull), *([scratch] if scratch else [])])
    except OSError:
        if tier == "landlock":
            raise
        return None


def _become_process_one() -> None:
    """The first child is process 1 of the new namespace; this one waits for it, and each dies with its parent."""
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    kernel.die_with_parent()


def _leave_root(user: int, readable: Sequence[Path]) -> bool:
    """Root is bounded by no limit on processes, so it becomes a user of whom there is nothing else; not where that one
    could not read the interpreter, or where a container does not let it. Root without capabilities it is then."""
    if os.geteuid() != 0:
        return False
    try:
        os.setgroups([])
        os.setegid(user)
        os.seteuid(user)
        can_read = all(os.access(path, os.R_OK, effective_ids=True) for path in readable)
        os.seteuid(0)
        os.setegid(0)
        if not can_read:
            return False
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError:
        return False
    return True


def _be_the_program(channel: int, confinement: Confinement) -> None:
    """In the fork; never returns."""
    try:
        kernel.die_with_parent()
        _close_all_but(channel, *([confinement.rules] if confinement.rules is not None else []))
        if confinement.rules is not None:
            landlock.restrict_self(confinement.rules)
            os.close(confinement.rules)
        _limit(confinement)
        if confinement.seccomp:
            seccomp.confine_self(seccomp.build_filter(os.getpid()))
        program.send(channel, program.HELLO, 0.0, b"")
        program.run(program.receive(channel), channel)
        os.read(channel, 1)  # stays until the judge has seen what it wants to see of a living process
    finally:
        os._exit(0)


def _limit(confinement: Confinement) -> None:
    """Memory is limited by EvalPlus' guard, time by the judge, who kills."""
    limits = [
        (resource.RLIMIT_FSIZE, LARGEST_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    if confinement.most_threads is not None:
        limits.append((resource.RLIMIT_NPROC, confinement.most_threads))
    for limit, most in limits:
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _close_all_but(*kept: int) -> None:
    """Standard input and output are /dev/null already."""
    last = 2
    for descriptor in sorted(kept):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def _empty(scratch: Path) -> None:
    """The next program finds nothing of the last. What cannot be removed ends this process, and its file system."""
    for entry in list(os.scandir(scratch)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
