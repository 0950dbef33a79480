"""The tiers: the kinds of confinement, one record each, the strongest first. To add a tier, add a record.

In every tier but `none`:
- seccomp forbids network, Unix and abstract sockets, other programs, other processes (threads are allowed) and signals;
- Landlock, a new root, or both hide every file but those of the interpreter, its packages and the system's libraries;
- nothing can be written except, in `namespaces`, a scratch directory of 64 MiB and 1,024 files in memory;
- resource limits bound memory, files, threads and descriptors, and the launcher kills a program at its deadline; where
  the machine's memory runs out all the same, the kernel kills programs before it kills their judge;
- a program inherits no environment variable of the user and no descriptor but its own channel.

A bwrap that is installed set-uid, or has an AppArmor profile, works where users may not make user namespaces.
`namespaces` works where bwrap is missing: container images, and RHEL 9 before 9.6, whose kernel 5.14 has no Landlock.
`landlock` works in containers whose runtime forbids namespaces.

No tier stops faults of the kernel in calls that stay allowed, use of CPU and memory up to the limits of each worker, a
program that knows the answers by heart, or reading the interpreter and its packages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.errors import CodetuneError
from codetune.sandbox.confinement import DEVICES, SCRATCH
from codetune.sandbox.zygote import Mechanisms

PACKAGE = Path(__file__).resolve().parents[1]
# The modules that the zygote loads; the root that bubblewrap makes has no other file of this package.
ZYGOTE_FILES = (
    "__init__.py",
    "sandbox/__init__.py",
    "sandbox/confinement.py",
    "sandbox/program.py",
    "sandbox/seccomp.py",
    "sandbox/serialization.py",
    "sandbox/shortage.py",
    "sandbox/zygote.py",
)
BUBBLEWRAP_CODE = Path("/codetune/code")
EVERY_USER_ID = ["0", "0", "4294967295"]  # the map of the machine's own user namespace; user_namespaces(7)


class SandboxError(CodetuneError):
    """The sandbox itself does not work; says nothing about any program."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A kind of confinement."""

    name: str  # the value of `evaluate.sandbox`
    mechanisms: Mechanisms | None  # what the zygote applies to itself and to its forks; None: nothing
    does_not_stop: str  # beyond what no tier stops; empty: nothing more
    wrapper: Callable[[Sequence[Path]], list[str]] | None = None  # readable paths -> start of the zygote's command line
    remedy: str = "allow user namespaces, or use another tier"  # what may make it work where it does not
    code: Path = PACKAGE.parent  # the directory from which the zygote imports this package

    @property
    def confines(self) -> bool:
        return self.mechanisms is not None


def bubblewrap_command(readable: Sequence[Path]) -> list[str]:
    """The command line up to the program that bwrap starts. Raises SandboxError where bwrap is missing.
    Documentation: bwrap(1)."""
    executable = shutil.which("bwrap")
    if executable is None:
        raise SandboxError("no bwrap on the path")
    binds = [(path, path) for path in readable]
    binds += [(PACKAGE / name, BUBBLEWRAP_CODE / "codetune" / name) for name in ZYGOTE_FILES]
    command = [executable, *_unshared(), "--die-with-parent", "--new-session"]
    for source, target in binds:
        command += ["--ro-bind", str(source), str(target)]
    for device in DEVICES:
        command += ["--dev-bind", str(device), str(device)]
    # Nothing is writable: bwrap cannot bound how many files a tmpfs holds, which are memory of the kernel.
    command += ["--dir", str(SCRATCH), "--remount-ro", "/"]
    return [*command, "--hostname", "sandbox", "--chdir", str(SCRATCH), "--"]


def _unshared() -> list[str]:
    """For root no user namespace, in which it could not change its user id: for threads of root no limit holds."""
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text(encoding="ascii").split() != EVERY_USER_ID:
        return ["--unshare-all", "--cap-drop", "ALL"]
    namespaces = [f"--unshare-{name}" for name in ("ipc", "pid", "net", "uts", "cgroup-try")]
    return [*namespaces, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


_RECORDS = (
    Tier(
        name="bubblewrap",
        mechanisms=Mechanisms(unshare=False, landlock_required=False, scratch=False),
        does_not_stop="",
        wrapper=bubblewrap_command,
        remedy="apt install bubblewrap",
        code=BUBBLEWRAP_CODE,
    ),
    Tier(
        name="namespaces",
        mechanisms=Mechanisms(unshare=True, landlock_required=False, scratch=True),
        does_not_stop="",
    ),
    Tier(
        name="landlock",
        mechanisms=Mechanisms(unshare=False, landlock_required=True, scratch=False),
        does_not_stop=(
            "learning that a file exists, its size, owner, times and link target, and which processes live (not "
            "what a file holds or a process does); where users may not make user namespaces, that a program takes the "
            "threads which another one needs"
        ),
    ),
    Tier(name="none", mechanisms=None, does_not_stop="anything: programs have the rights of the user"),
)
TIERS: Mapping[str, Tier] = {tier.name: tier for tier in _RECORDS}
