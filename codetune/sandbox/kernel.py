"""The Linux calls that Python has no name for, through the C library: prctl, capabilities, namespaces and mounts.

Numbers are the kernel's user interface, as its headers have them: linux/prctl.h, linux/sched.h, linux/mount.h,
linux/capability.h. A call that fails raises OSError. What they are used for stands in `namespaces.py`, `landlock.py`,
`seccomp.py` and `zygote.py`; here nothing is decided.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 2, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
LINUX_CAPABILITY_VERSION_3 = 0x20080522
SYS_MOUNT_SETATTR = 442  # since Linux 5.12, the same on every architecture
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int, address: Any = 0) -> None:
    _checked(_LIBC.prctl(option, _word(value), address or _word(0), _word(0), _word(0)))


def system_call(number: int, *arguments: Any) -> int:
    """Numbers are passed as whole words: the C library's `syscall` knows no types."""
    words = (_word(argument) if isinstance(argument, int) else argument for argument in arguments)
    return _checked(_LIBC.syscall(_word(number), *words))


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def hide_from_own_user() -> None:
    """Nobody of the same user may open this process' memory or trace it, nor any that it forks."""
    prctl(PR_SET_DUMPABLE, 0)


def gain_no_privileges() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """All three sets of this process. Documentation: capset(2)."""
    header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
    _checked(_LIBC.capset(header, bytes(24)))


def unshare(flags: int) -> None:
    _checked(_LIBC.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None, _word(flags), options.encode() or None)
    _checked(_LIBC.mount(*arguments))


def make_read_only(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): unlike a second mount(2) it keeps the flags that a user namespace may not clear."""
    wanted = struct.pack("QQQQ", attributes | MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    system_call(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, wanted, len(wanted))


def pivot_root(new_root: Path) -> None:
    """pivot_root(".", "."), as pivot_root(2) shows it: the old root lies on top of the new one and is let go."""
    os.chdir(new_root)
    system_call(SYS_PIVOT_ROOT[platform.machine()], b".", b".")
    _checked(_LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")


def set_host_name(name: str) -> None:
    _checked(_LIBC.sethostname(name.encode(), _word(len(name))))


def _word(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
