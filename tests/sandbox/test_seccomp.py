from __future__ import annotations

import re
from pathlib import Path

import pytest

from codetune.sandbox.seccomp import ALLOWED, CLONE3, MACHINES, argument_checks, build_filter

HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}
NAMES = ("clone", "close_range", "fcntl", "ioctl", "prctl", "prlimit64", "tgkill", "sendto", "recvfrom", "socketpair")
NEVER_PROCESSES = ["execve", "execveat", "fork", "vfork", "clone3"]
NEVER_SOCKETS = [
    "socket",
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "sendmsg",
    "recvmsg",
    "sendmmsg",
    "setsockopt",
]
NEVER_SIGNALS = [
    "kill",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_send_signal",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
]
NEVER_SYSTEM = [
    "mount",
    "umount2",
    "pivot_root",
    "unshare",
    "setns",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "keyctl",
    "add_key",
    "shmget",
    "memfd_create",
    "mq_open",
    "msgget",
    "semget",
    "timer_create",
    "inotify_init1",
    "setrlimit",
]
NEVER_PRIORITY = ["setpriority", "sched_setscheduler", "sched_setattr", "sched_setaffinity", "ioprio_set"]
NEVER_FILES = ["chmod", "fchmod", "fchmodat", "chown", "utimensat", "truncate", "link", "linkat", "mknod", "setxattr"]
NEVER = [*NEVER_PROCESSES, *NEVER_SOCKETS, *NEVER_SIGNALS, *NEVER_SYSTEM, *NEVER_PRIORITY, *NEVER_FILES]


def numbers(column: int) -> dict[str, int]:
    """As the kernel's header has them; aarch64's is the generic one."""
    if not HEADERS[column].is_file():
        pytest.skip(f"no {HEADERS[column]}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", HEADERS[column].read_text(encoding="ascii"))
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize("column", [0, 1])
def test_the_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    known = numbers(column)
    known.setdefault("newfstatat", known.get("fstatat", -1))
    wrong = {name: both[column] for name, both in ALLOWED.items() if both[column] not in (None, known.get(name))}
    assert wrong == {}
    assert [check.number[column] for check in argument_checks(7)] == [known[name] for name in NAMES]
    assert known["clone3"] == CLONE3


@pytest.mark.parametrize("column", [0, 1])
def test_dangerous_system_calls_are_not_allowed(column: int) -> None:
    known = numbers(column)
    allowed = {both[column] for both in ALLOWED.values()} | {check.number[column] for check in argument_checks(7)}
    assert [name for name in NEVER if known.get(name, -1) in allowed] == []


def test_a_filter_is_short_enough_for_the_kernel_and_ends_in_a_refusal() -> None:
    program = build_filter(7)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    assert program[-8:] == b"\x06\x00\x00\x00\x01\x00\x05\x00"  # return errno EPERM
    assert set(MACHINES) == {"x86_64", "aarch64"}
