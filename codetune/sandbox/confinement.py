"""Linux calls that Python has no function for, made through the C library: prctl, capabilities, namespaces, mounts and
Landlock. A call that fails raises OSError.

Numbers are from linux/prctl.h, sched.h, mount.h, capability.h and landlock.h. `tiers.py` and `zygote.py` decide which
mechanisms are used; `seccomp.py` filters system calls. Libraries for this are unmaintained or need a newer kernel.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
ALL_NAMESPACES_BUT_USER = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 2, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
LINUX_CAPABILITY_VERSION_3 = 0x20080522
SYS_MOUNT_SETATTR = 442  # since Linux 5.12, the same on every architecture
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

DEVICES = tuple(Path("/dev", name) for name in ("null", "zero", "random", "urandom"))
SCRATCH = Path("/codetune/scratch")  # in a new root; no interpreter is installed below /codetune
SCRATCH_BYTES = 64 * 2**20
SCRATCH_OPTIONS = f"size={SCRATCH_BYTES},nr_inodes=1024,mode=1777"

# Landlock: the same numbers on every architecture, since Linux 5.13.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
# Remove and make directories, files and symbolic links; no devices, sockets or pipes.
CHANGE_DIRECTORY = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
RIGHTS_ON_FILES = READ_FILE | WRITE_FILE | TRUNCATE  # rights that apply to a path that is not a directory
# ABI -> the highest file right that it knows: execute to make_sym, refer, truncate, ioctl on devices.
HIGHEST_FILE_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15}
BIND_AND_CONNECT_TCP = 0b11  # ABI 4
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # ABI 6

_LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int, address: bytes | None = None) -> None:
    """prctl(2); `address` is passed as a pointer."""
    _check(_LIBC.prctl(option, _word(value), address or _word(0), _word(0), _word(0)))


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants of this process become its children when their own parent ends."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def hide_from_own_user() -> None:
    """Bars other processes of the same user from tracing this process or its forks and from opening their memory."""
    prctl(PR_SET_DUMPABLE, 0)


def gain_no_privileges() -> None:
    """Sets no-new-privileges, which Landlock and seccomp require of an unprivileged process."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets of this process. Documentation: capset(2)."""
    _check(_LIBC.capset(struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0), bytes(24)))


def lower_limit(kind: int, value: int) -> None:
    """Sets the soft and the hard resource limit to `value`, or to the present hard limit where that is lower."""
    hard = resource.getrlimit(kind)[1]
    lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (lowered, lowered))


def enter_namespaces(readable: Iterable[Path], new_root: Path) -> None:
    """Moves this process, which has one thread, into namespaces of its own, with a root in memory: `readable` paths
    read-only, a few devices and a scratch directory. Its first child becomes process 1. `new_root` is an empty
    directory. Needs Linux 5.12, and root or unprivileged user namespaces. Documentation: user_namespaces(7)."""
    _unshare_all()
    _mount("none", "/", "", MS_REC | MS_PRIVATE, "")
    _mount("tmpfs", str(new_root), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in readable:
        _bind_read_only(path, new_root, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for device in DEVICES:
        _bind_read_only(device, new_root, MOUNT_ATTR_NOSUID)
    scratch = new_root / SCRATCH.relative_to("/")
    scratch.mkdir(parents=True)
    _mount("tmpfs", str(scratch), "tmpfs", MS_NOSUID | MS_NODEV, SCRATCH_OPTIONS)
    # As pivot_root(2) shows it: the old root is then mounted over the new one, and detached.
    os.chdir(new_root)
    _system_call(SYS_PIVOT_ROOT[platform.machine()], b".", b".")
    _check(_LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")
    _make_read_only("/", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive=False)
    _check(_LIBC.sethostname(b"sandbox", _word(len(b"sandbox"))))


def create_ruleset(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """A descriptor of Landlock rules that forbid all that this kernel's Landlock can forbid, except below these paths.
    Landlock does not govern stat, reading links and changing directory. Raises OSError where the kernel has none.
    Documentation: https://docs.kernel.org/userspace-api/landlock.html"""
    abi = _system_call(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    handled = (1 << (HIGHEST_FILE_RIGHT.get(abi, 15) + 1)) - 1
    attributes = struct.pack("Q", handled)
    if abi >= 4:
        attributes += struct.pack("Q", BIND_AND_CONNECT_TCP)
    if abi >= 6:
        attributes += struct.pack("Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _system_call(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    for path in readable:
        _allow_below(ruleset, path, READ_FILE | READ_DIR)
    for path in writable:
        _allow_below(ruleset, path, (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | CHANGE_DIRECTORY) & handled)
    return ruleset


def apply_ruleset(ruleset: int) -> None:
    """Applies Landlock rules to this process. Needs no-new-privileges."""
    _system_call(LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _unshare_all() -> None:
    """Makes no user namespace for root, so that it can change its user id afterwards; one for root of a container that
    is refused this, as for ordinary users."""
    if os.geteuid() == 0:
        with suppress(PermissionError):
            _check(_LIBC.unshare(ALL_NAMESPACES_BUT_USER))
            return
    enter_user_namespace(ALL_NAMESPACES_BUT_USER)


def enter_user_namespace(others: int = 0) -> None:
    """Moves this process, which has one thread, into a user namespace of its own and into the `others`; it has all
    capabilities there. Since Linux 5.14 RLIMIT_NPROC counts the processes of each user namespace apart."""
    user, group = os.geteuid(), os.getegid()
    _check(_LIBC.unshare(others | CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="utf-8")


def _bind_read_only(path: Path, new_root: Path, attributes: int) -> None:
    target = new_root / path.relative_to("/")
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(path), str(target), "", MS_BIND | MS_REC, "")
    _make_read_only(str(target), attributes, recursive=True)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    names = source.encode(), target.encode(), kind.encode() or None
    _check(_LIBC.mount(*names, _word(flags), options.encode() or None))


def _make_read_only(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): unlike a second mount(2) it keeps the flags that a user namespace may not clear."""
    wanted = struct.pack("QQQQ", attributes | MOUNT_ATTR_RDONLY, 0, 0, 0)
    _system_call(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE if recursive else 0, wanted, len(wanted))


def _allow_below(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & RIGHTS_ON_FILES, descriptor)
        _system_call(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    """Integers are passed as whole words: the C library's `syscall` has no argument types."""
    words = (_word(argument) if isinstance(argument, int) else argument for argument in arguments)
    return _check(_LIBC.syscall(_word(number), *words))


def _word(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def _check(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
