"""Finds out which tiers work on this machine: a program attempts to escape from each, towards a server, files and
sockets that are made for it. The kernel's version and settings are no evidence, since containers and security modules
bar calls that the kernel has. A tier in which an attempt succeeds is not used.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from codetune.errors import CodetuneError
from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import NO_HARNESS, CallReport, Sandbox
from codetune.sandbox.tiers import TIERS, SandboxError
from codetune.store.scratch import scratch_directory

CONFINING_TIERS = tuple(name for name, tier in TIERS.items() if tier.confines)
PROBE_SECONDS = 20
PROBE_BYTES = 2**32

# Returns, in words, the attempts that succeeded. Processes, signals and traces are attempted through the C library.
ESCAPE_PROGRAM = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)

def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", address)

def read(path):
    os.read(os.open(path, os.O_RDONLY), 1)

def write(path):
    os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"x")

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno())

def fork():
    child = libc.fork()
    if child == 0:
        libc._exit(0)
    check(child)

def attempt_escapes(port, abstract, secret, new, launcher):
    attempts = {
        "connect by TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, abstract),
        "send by UDP": lambda: send(("127.0.0.1", port)),
        "read a file of the user": lambda: read(secret),
        "write a file of the user": lambda: write(secret),
        "make a file": lambda: write(new),
        "read the environment of the process outside": lambda: read(f"/proc/{launcher}/environ"),
        "start a process": fork,
        "signal the process outside": lambda: check(libc.kill(launcher, 0)),
        "trace the process outside": lambda: check(libc.ptrace(0x4206, launcher, 0, 0)),
    }
    succeeded = []
    for name, attempt in attempts.items():
        try:
            attempt()
            succeeded.append(name)
        except OSError:
            pass
    import numpy
    return succeeded, float(numpy.arange(4).sum())
"""


def choose_tier(wanted: str) -> str:
    """The strongest tier that works for `auto`, else the tier `wanted` if it works. Raises CodetuneError if not."""
    if wanted == "none":
        return "none"
    failures = []
    for tier in CONFINING_TIERS if wanted == "auto" else (wanted,):
        failure = find_failure(tier)
        if failure is None:
            return tier
        failures.append(failure)
    expected = f"one of {', '.join(CONFINING_TIERS)}" if wanted == "auto" else wanted
    raise CodetuneError(
        f"No sandbox works here, and no program is run without one. Tried: {'; '.join(failures)}. "
        f"Expected: {expected}. Install bubblewrap, or use Linux 5.13 or newer where containers allow Landlock and "
        "seccomp. evaluate.sandbox: none runs programs with your rights"
    )


def find_failure(tier: str) -> str | None:
    """Why a tier cannot be used here; None where it works."""
    with scratch_directory() as scratch, _escape_targets() as (secret, port, abstract):
        (directory := scratch / "sandbox").mkdir()
        try:
            sandbox = Sandbox.start(tier, directory, NO_HARNESS)
        except SandboxError as why:
            return str(why)
        with closing(sandbox):
            failure = _attempt_escapes(sandbox, (port, abstract, str(secret), f"{secret}.new", os.getpid()))
    return failure and f"{tier}: {failure}"


def _attempt_escapes(sandbox: Sandbox, call: tuple[object, ...]) -> str | None:
    request = program.ExecutionRequest(
        ESCAPE_PROGRAM,
        "attempt_escapes",
        calls=pickle.dumps([call]),
        seconds=(float(PROBE_SECONDS),),
        wall_factor=1,
        memory_bytes=PROBE_BYTES,
        returns="value",
        imports=(),
    )
    try:
        with sandbox.run(request, PROBE_SECONDS) as running:
            report = next(running.reports())
    except SandboxError as why:
        return str(why)
    if not isinstance(report, CallReport) or report.kind != program.VALUE:
        reason = report.content.decode(errors="replace") if isinstance(report, CallReport) else report.reason
        return f"a plain program does not run in it ({reason})"
    match serialization.decode(report.content):
        case [[*succeeded], 6.0]:
            return f"a program in it could {', '.join(map(str, succeeded))}" if succeeded else None
    return "a plain program does not compute in it"


@contextmanager
def _escape_targets() -> Iterator[tuple[Path, int, str]]:
    """A file that only the user can read, the port of a server, and the name of an abstract socket that accepts."""
    abstract = f"\0codetune-{secrets.token_hex(8)}"
    with (
        scratch_directory() as outside,  # not the directory of the zygote
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(abstract)
        unix.listen()
        # Anybody may write into this directory, so that only the sandbox can keep the program out.
        (targets := outside / "targets").mkdir()
        outside.chmod(0o755)
        targets.chmod(0o777)
        (secret := targets / "secret").touch(0o600)
        secret.write_bytes(b"secret")
        yield secret, tcp.getsockname()[1], abstract
