"""seccomp: the system calls that a program may make. The table lists what is allowed; every other call fails with
EPERM, so calls of later kernels are refused as well. Needs no-new-privileges; cannot be undone.

Not in the table: starting processes or programs (threads are allowed), sockets other than connected pairs, signals to
other processes, tracing, mounts, namespaces, keys, shared memory, io_uring, and changing modes, owners or times of
files, which Landlock does not govern. Numbers: asm/unistd_64.h, asm-generic/unistd.h. Documentation:
https://docs.kernel.org/userspace-api/seccomp_filter.html, linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from codetune.sandbox import confinement

# linux/audit.h: the architecture that the filter checks, as numbers differ between them; then the column of the table.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# fmt: off
# name: its number on x86-64, and on aarch64 where it has one
ALLOWED: Mapping[str, tuple[int, int | None]] = {
    # files that are open
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80),
    "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "fallocate": (285, 47), "flock": (73, 32),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "eventfd2": (290, 19), "copy_file_range": (326, 285), "sendfile": (40, 71),
    # files by name, as far as Landlock and the mounts allow
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17),
    "chdir": (80, 49), "fchdir": (81, 50), "getdents64": (217, 61), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "symlink": (88, None), "symlinkat": (266, 36), "umask": (95, 166),
    "statfs": (137, 43), "fstatfs": (138, 44),
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "msync": (26, 227), "mincore": (27, 232),
    # waiting
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "sched_yield": (24, 124), "pause": (34, None), "futex": (202, 98),
    # time
    "time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "times": (100, 153), "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103),
    # its own signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # ids and resources of the process
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "getcpu": (309, 168),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    # threads and their end, chance
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293), "membarrier": (324, 283),
    "arch_prctl": (158, None), "set_tid_address": (218, 96), "exit": (60, 93), "exit_group": (231, 94),
    "getrandom": (318, 278),
    # the ends of a connected pair, whose buffers keep their size
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
}
# fmt: on
CLONE3 = 435  # its flags are in memory, which a filter cannot read; after ENOSYS the C library uses clone

# A thread shares memory, directory, open files and signals with its process: with a table of its own for open files,
# each thread could fill one, and the buffers of pipes and sockets are memory that no limit of the process counts.
THREAD = 0x10F00  # CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND and CLONE_THREAD
NEW_NAMESPACES = 0x7E020000
CLOSE_RANGE_CLOEXEC = 4  # and not CLOSE_RANGE_UNSHARE, which makes a table of open files
# What Python itself uses: is this a terminal, bytes to read, blocking, close on exec.
TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x5401, 0x541B, 0x5421, 0x5450, 0x5451
PR_SET_NAME, PR_GET_NAME, PR_SET_VMA = 15, 16, 0x53564D41
# F_DUPFD to F_SETLKW, and F_DUPFD_CLOEXEC: F_SETOWN and F_SETSIG would send signals to other processes.
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
EVERY_BIT = 0xFFFFFFFF

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06  # BPF: ld word abs, jeq k, and k, ret k
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_OFFSET, MACHINE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16  # struct seccomp_data; of an argument the low word is first


@dataclass(frozen=True, slots=True)
class ArgumentCheck:
    """A call that is allowed only where one argument, after masking, has one of some values."""

    number: tuple[int, int]
    argument: int
    mask: int
    values: tuple[int, ...]


def argument_checks(own_pid: int) -> list[ArgumentCheck]:
    """`own_pid`: the process that the filter is for, the only one it may send signals to or set limits of."""
    return [
        ArgumentCheck((56, 220), 0, THREAD | NEW_NAMESPACES, (THREAD,)),  # clone
        ArgumentCheck((436, 436), 2, EVERY_BIT, (0, CLOSE_RANGE_CLOEXEC)),  # close_range
        ArgumentCheck((72, 25), 1, EVERY_BIT, FCNTL_COMMANDS),  # fcntl
        ArgumentCheck((16, 29), 1, EVERY_BIT, (TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX)),  # ioctl
        ArgumentCheck((157, 167), 0, EVERY_BIT, (PR_SET_NAME, PR_GET_NAME, PR_SET_VMA)),  # prctl
        ArgumentCheck((302, 261), 0, EVERY_BIT, (0, own_pid)),  # prlimit64
        ArgumentCheck((234, 131), 0, EVERY_BIT, (own_pid,)),  # tgkill
        ArgumentCheck((44, 206), 3, socket.MSG_OOB, (0,)),  # sendto
        ArgumentCheck((45, 207), 3, socket.MSG_OOB, (0,)),  # recvfrom
        # socketpair: streams only, as a datagram can be sent to an address. asyncio wakes itself by one.
        ArgumentCheck((53, 199), 1, 0xF, (socket.SOCK_STREAM,)),
    ]


def is_supported() -> bool:
    """Whether the table has a column for this machine."""
    return platform.machine() in MACHINES


def build_filter(own_pid: int) -> bytes:
    """The filter for the process of that id, as the kernel reads it: BPF instructions of 8 bytes."""
    machine, column = MACHINES[platform.machine()]
    program = [_step(LOAD, MACHINE_OFFSET), _step(EQUAL, machine, 1, 0), _step(RETURN, KILL)]
    program.append(_step(LOAD, NUMBER_OFFSET))
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [_step(EQUAL, number, 0, 1), _step(RETURN, ALLOW)]
    for check in argument_checks(own_pid):
        program += _check_argument(check, column)
    program += [_step(EQUAL, CLONE3, 0, 1), _step(RETURN, REFUSE | errno.ENOSYS), _step(RETURN, REFUSE | errno.EPERM)]
    return b"".join(program)


def apply_filter(program: bytes) -> None:
    """Applies the filter to this process and to the threads that it starts. Needs no-new-privileges."""
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and their address
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    confinement.prctl(confinement.PR_SET_SECCOMP, 2, fprog)  # 2: a filter


def _check_argument(check: ArgumentCheck, column: int) -> list[bytes]:
    tests = [_step(LOAD, ARGUMENTS_OFFSET + 8 * check.argument), _step(AND, check.mask)]
    for value in check.values:
        tests += [_step(EQUAL, value, 0, 1), _step(RETURN, ALLOW)]
    tests.append(_step(RETURN, REFUSE | errno.EPERM))
    return [_step(EQUAL, check.number[column], 0, len(tests)), *tests]


def _step(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, constant)
