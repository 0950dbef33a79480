"""The process inside the sandbox from which programs are forked, one at a time; `launcher.py` starts it.

Python, numpy and the harness are loaded once: a fork takes milliseconds, a new interpreter 100. This process is trusted
and reads nothing that a program wrote. A child closes descriptors, applies Landlock, limits and seccomp, and reports
that it is confined; then it gets its program. Where a step fails, it ends before.
"""

from __future__ import annotations

import bisect
import errno
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codetune.sandbox import confinement, program, seccomp
from codetune.sandbox.shortage import when_available

LIMITS = {  # bytes of a file, open files, queued signals, and none of core dumps and locked memory
    resource.RLIMIT_FSIZE: 64 * 2**20,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_SIGPENDING: 256,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
}
MAX_THREADS = 256  # of a program and its zygote, where nothing else is counted with them
OWN_PROCESSES = 8  # a zygote, its fork, and those of bubblewrap; where more are counted, they are others of the user
MAX_THREADS_AMONG_OTHERS = 1024  # more than the user has when the zygote starts: those can become more as well
MAX_PROCESSES = 2**22  # of a Linux machine
READY, ENDED, KILLED = b"ready", b".", b"k"


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """The measures that the zygote of a tier applies besides seccomp, resource limits and the drop of privileges."""

    unshare: bool  # it makes namespaces and a new root itself
    landlock_required: bool  # else Landlock is a second barrier, used where the kernel has it
    scratch: bool  # programs may write to confinement.SCRATCH, in the new root


@dataclass(frozen=True, slots=True)
class StartOptions:
    """The message of the launcher to the zygote, one argument of JSON."""

    control: int  # descriptor of the control socket
    user_id: int  # that nothing else has; root changes to it
    mechanisms: Mechanisms | None
    preload: list[str]  # modules of the harness
    readable: list[str]  # paths

    @classmethod
    def from_json(cls, text: str) -> StartOptions:
        fields = json.loads(text)
        mechanisms = fields.pop("mechanisms")
        return cls(**fields, mechanisms=Mechanisms(**mechanisms) if mechanisms else None)


@dataclass(frozen=True, slots=True)
class ForkRestrictions:
    """The restrictions that every fork of the zygote applies to itself."""

    ruleset: int | None  # descriptor of the Landlock rules
    seccomp: bool
    max_threads: int | None
    scratch: Path | None  # emptied after each program


def main() -> None:
    """Runs until the launcher closes the control socket. The argument is a `StartOptions` in JSON."""
    options = StartOptions.from_json(sys.argv[1])
    control = socket.socket(fileno=options.control)
    try:
        for module in options.preload:
            importlib.import_module(module)
        restrictions = _confine(options)
    except (OSError, ImportError) as why:
        control.send(str(why).encode())
        return
    gc.freeze()  # else the first collection in every fork would copy all that is loaded
    control.send(READY)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        child = when_available(os.fork)
        if child == 0:
            _run_program(descriptors[0], restrictions)
        os.close(descriptors[0])
        _, status = os.waitpid(child, 0)
        if restrictions.scratch:
            _empty(restrictions.scratch)
        control.send(KILLED if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else ENDED)


def _confine(options: StartOptions) -> ForkRestrictions:
    """Confines the zygote as far as it can be; returns, in the process that will fork programs, what is left to do."""
    mechanisms, readable = options.mechanisms, [Path(path) for path in options.readable]
    confinement.die_with_parent()
    if mechanisms is None:
        own_directory = _change_directory(Path(tempfile.mkdtemp(dir=".")))
        return ForkRestrictions(None, seccomp=False, max_threads=None, scratch=own_directory)
    if not seccomp.is_supported():
        raise OSError("no table of system calls for this kind of processor")
    _change_real_user(options.user_id)
    if mechanisms.unshare:
        confinement.enter_namespaces(readable, Path(tempfile.mkdtemp(dir=".")).absolute())
        _become_process_one()
    _change_user(options.user_id, readable)
    max_threads = _max_threads()
    confinement.drop_capabilities()
    confinement.gain_no_privileges()
    # These two come last: the kernel resets them when the user id changes.
    confinement.hide_from_own_user()
    confinement.die_with_parent()
    tempfile.tempdir = str(Path.cwd())  # some packages need a value, and do not write to the directory
    scratch = _change_directory(confinement.SCRATCH) if mechanisms.scratch else None
    ruleset = _create_ruleset(mechanisms, readable, scratch)
    return ForkRestrictions(ruleset, seccomp=True, max_threads=max_threads, scratch=scratch)


def _change_directory(scratch: Path) -> Path:
    os.chdir(scratch)
    tempfile.tempdir = str(Path.cwd())
    return Path.cwd()


def _create_ruleset(mechanisms: Mechanisms, readable: Sequence[Path], scratch: Path | None) -> int | None:
    try:
        return confinement.create_ruleset(readable, [Path(os.devnull), *([scratch] if scratch else [])])
    except OSError:
        if mechanisms.landlock_required:
            raise
        return None


def _become_process_one() -> None:
    """The first child is process 1 of the new namespace; its parent waits for it, and each dies with its parent."""
    if child := when_available(os.fork):
        os.waitpid(child, 0)
        os._exit(0)
    confinement.die_with_parent()


def _change_real_user(user_id: int) -> None:
    """RLIMIT_NPROC counts the processes of the real user id, and does not hold for that of root. The effective user id,
    by which files are read, stays. Nothing changes for an ordinary user and where a container forbids it."""
    if os.geteuid() == 0:
        with suppress(OSError):
            os.setresuid(user_id, -1, -1)


def _change_user(user_id: int, readable: Sequence[Path]) -> None:
    """Changes all ids of root to `user_id`, unless that user could not read the interpreter, or a container forbids
    it."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        os.setgroups([])
        os.setegid(user_id)
        os.seteuid(user_id)
        can_read = all(os.access(path, os.R_OK, effective_ids=True) for path in readable)
        os.seteuid(0)
        os.setegid(0)
        if can_read:
            os.setresgid(user_id, user_id, user_id)
            os.setresuid(user_id, user_id, user_id)


def _max_threads() -> int:
    """The RLIMIT_NPROC of programs. What the kernel counts depends on the user, the namespaces and the kernel's age, so
    it is found by trying. Raises OSError where no limit holds."""
    confinement.drop_capabilities()  # with some of them no limit holds
    counted = when_available(_count_processes)
    if counted > OWN_PROCESSES:
        with suppress(OSError):
            confinement.enter_user_namespace()
        confinement.drop_capabilities()
        counted = when_available(_count_processes)
    if counted <= 1:
        raise OSError("its threads cannot be limited, as root may not change its user id here: run as another user")
    return MAX_THREADS if counted <= OWN_PROCESSES else counted + MAX_THREADS_AMONG_OTHERS


def _count_processes() -> int:
    """The lowest RLIMIT_NPROC with which this process can fork; 1 where the limit does not hold. Raises BlockingIOError
    where the machine has no process to give at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = MAX_PROCESSES if hard == resource.RLIM_INFINITY else hard
    few = min(OWN_PROCESSES, most)
    try:
        if _can_fork(few, hard):  # then a few forks will do instead of twenty
            most = few
        elif not _can_fork(most, hard):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 1 + bisect.bisect_left(range(1, most), True, key=lambda limit: _can_fork(limit, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def _can_fork(limit: int, hard: int) -> bool:
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        child = os.fork()
    except BlockingIOError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def _run_program(channel: int, restrictions: ForkRestrictions) -> None:
    """Runs in the fork; never returns."""
    try:
        confinement.die_with_parent()
        _close_all_but(channel, restrictions.ruleset)
        if restrictions.ruleset is not None:
            confinement.apply_ruleset(restrictions.ruleset)
            os.close(restrictions.ruleset)
        _limit_resources(restrictions.max_threads)
        if restrictions.seccomp:
            seccomp.apply_filter(seccomp.build_filter(os.getpid()))
        program.send(channel, program.CONFINED, 0.0, b"")
        request, harness = program.receive(channel)
        program.run(request, harness, channel)
        os.read(channel, 1)  # the process stays until the launcher has read its scheduler statistics
    finally:
        os._exit(0)


def _limit_resources(max_threads: int | None) -> None:
    """All but memory, which a request bounds, and time: the launcher kills."""
    for kind, value in LIMITS.items():
        confinement.lower_limit(kind, value)
    if max_threads is not None:
        confinement.lower_limit(resource.RLIMIT_NPROC, max_threads)


def _close_all_but(channel: int, ruleset: int | None) -> None:
    """Standard streams stay open: they are /dev/null."""
    last = 2
    for descriptor in sorted(kept for kept in (channel, ruleset) if kept is not None):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def _empty(scratch: Path) -> None:
    """Removes what the last program wrote. An error here ends the zygote, and its file system with it."""
    for entry in list(os.scandir(scratch)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
