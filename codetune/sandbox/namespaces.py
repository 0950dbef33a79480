"""A root of its own without processes, network or files of anybody: Linux namespaces, from within a process.

After `enter` this process sees a file system in memory with the given paths read-only, a scratch directory of a
bounded size, and nothing else; its first child is process 1 of a world where no other is. Documentation: namespaces(7),
user_namespaces(7), pivot_root(2), mount_setattr(2). Needs Linux 5.12, and either root or user namespaces for everybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from codetune.sandbox import kernel

ALL_BUT_USER = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
DEVICES = tuple(Path("/dev", name) for name in ("null", "zero", "random", "urandom"))
SCRATCH = Path("/codetune/scratch")  # a name that no interpreter lies below
SCRATCH_OPTIONS = "size=64m,nr_inodes=1024,mode=1777"


def enter(readable: Iterable[Path], new_root: Path) -> None:
    """`new_root` is an empty directory of this process' own. Only processes with one thread may do this."""
    _leave()
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")
    kernel.mount("tmpfs", str(new_root), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path in readable:
        _bind(path, new_root, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
    for device in DEVICES:
        _bind(device, new_root, kernel.MOUNT_ATTR_NOSUID)
    scratch = new_root / SCRATCH.relative_to("/")
    scratch.mkdir(parents=True)
    kernel.mount("tmpfs", str(scratch), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, SCRATCH_OPTIONS)
    kernel.pivot_root(new_root)
    kernel.make_read_only("/", kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV, recursive=False)
    kernel.set_host_name("sandbox")


def _leave() -> None:
    """Root needs no user namespace, and without one it can put on another user's number; in a container it may be
    allowed to do it by one only, like everybody else."""
    if os.geteuid() == 0:
        try:
            kernel.unshare(ALL_BUT_USER)
        except PermissionError:
            pass
        else:
            return
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(ALL_BUT_USER | kernel.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="utf-8")


def _bind(path: Path, new_root: Path, attributes: int) -> None:
    place = new_root / path.relative_to("/")
    if path.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    kernel.mount(str(path), str(place), "", kernel.MS_BIND | kernel.MS_REC, "")
    kernel.make_read_only(str(place), attributes, recursive=True)
