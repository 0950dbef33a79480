"""The process inside the sandbox from which programs are forked, one at a time; `launcher.py` starts it.

Python, numpy and the harness are loaded once: a fork takes milliseconds, a new interpreter 100. This process is trusted
and reads nothing that a program wrote. A child closes descriptors, applies Landlock, limits and seccomp, and reports
that it is confined; then it gets its program. Where a step fails, it ends before.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.sandbox import confinement, program, seccomp

LIMITS = {  # bytes of a file, open files, and none of core dumps and locked memory
    resource.RLIMIT_FSIZE: 64 * 2**20,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
}
MAX_THREADS = 4096  # counted together with all other threads of the same user
MAX_THREADS_OF_OWN_USER = 256  # where the user id is used by this sandbox only
FIRST_UNUSED_USER_ID = 2_000_000_000
READY, ENDED = b"ready", b"."


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
        restrictions = _confine(options.mechanisms, [Path(path) for path in options.readable])
    except (OSError, ImportError) as why:
        control.send(str(why).encode())
        return
    gc.freeze()  # else the first collection in every fork would copy all that is loaded
    control.send(READY)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        child = os.fork()
        if child == 0:
            _run_program(descriptors[0], restrictions)
        os.close(descriptors[0])
        os.waitpid(child, 0)
        if restrictions.scratch:
            _empty(restrictions.scratch)
        control.send(ENDED)


def _confine(mechanisms: Mechanisms | None, readable: Sequence[Path]) -> ForkRestrictions:
    """Confines the zygote as far as it can be; returns, in the process that will fork programs, what is left to do."""
    confinement.die_with_parent()
    if mechanisms is None:
        own_directory = _change_directory(Path(tempfile.mkdtemp(dir=".")))
        return ForkRestrictions(None, seccomp=False, max_threads=None, scratch=own_directory)
    if not seccomp.is_supported():
        raise OSError("no table of system calls for this kind of processor")
    user_id = FIRST_UNUSED_USER_ID + os.getpid() % 100_000_000  # a different one in every zygote
    if mechanisms.unshare:
        confinement.enter_namespaces(readable, Path(tempfile.mkdtemp(dir=".")).absolute())
        _become_process_one()
    has_own_user = _change_user(user_id, readable)
    confinement.drop_capabilities()
    confinement.gain_no_privileges()
    # These two come last: the kernel resets them when the user id changes.
    confinement.hide_from_own_user()
    confinement.die_with_parent()
    tempfile.tempdir = str(Path.cwd())  # some packages need a value, and do not write to the directory
    scratch = _change_directory(confinement.SCRATCH) if mechanisms.scratch else None
    max_threads = MAX_THREADS_OF_OWN_USER if has_own_user else MAX_THREADS
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
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    confinement.die_with_parent()


def _change_user(user_id: int, readable: Sequence[Path]) -> bool:
    """Changes root to a user id that nothing else has, since no limit on processes holds for root. Returns False where
    it is not root, that user could not read the interpreter, or a container forbids it."""
    if os.geteuid() != 0:
        return False
    try:
        os.setgroups([])
        os.setegid(user_id)
        os.seteuid(user_id)
        can_read = all(os.access(path, os.R_OK, effective_ids=True) for path in readable)
        os.seteuid(0)
        os.setegid(0)
        if not can_read:
            return False
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    except OSError:
        return False
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
