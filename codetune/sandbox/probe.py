"""Which sandbox works on this machine, found by trying: a program that wants out is run in it, against a server, files
and sockets that are there for it. What a kernel says about itself proves nothing: containers and security modules bar
calls that it has.

Fail closed: a tier in which anything was possible that should not be is not used, and without any there is an error.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from codetune.errors import CodetuneError
from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import Frame, Sandbox, SandboxError, Tier
from codetune.store.scratch import scratch_directory

LADDER: tuple[Tier, ...] = tuple(tier for tier in get_args(Tier) if tier != "none")
PROBE_SECONDS = 20
PROBE_BYTES = 2**32

# Returns what succeeded that must not, in words. Through the C library where the guard has taken Python's own away.
INTRUDER = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)

def sends(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", address)

def reads(path):
    os.read(os.open(path, os.O_RDONLY), 1)

def writes(path):
    os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"x")

def done(result):
    if result < 0:
        raise OSError(ctypes.get_errno())

def forks():
    child = libc.fork()
    if child == 0:
        libc._exit(0)
    done(child)

def intrude(port, abstract, secret, new, judge):
    attempts = {
        "connect by TCP": lambda: connects(socket.AF_INET, ("127.0.0.1", port)),
        "connect to an abstract socket": lambda: connects(socket.AF_UNIX, abstract),
        "send by UDP": lambda: sends(("127.0.0.1", port)),
        "read a file of the user": lambda: reads(secret),
        "write a file of the user": lambda: writes(secret),
        "make a file": lambda: writes(new),
        "read the judge's environment": lambda: reads(f"/proc/{judge}/environ"),
        "start a process": forks,
        "signal the judge": lambda: done(libc.kill(judge, 0)),
        "trace the judge": lambda: done(libc.ptrace(0x4206, judge, 0, 0)),
    }
    open_ways = [f"see {name} of the environment" for name in os.environ if name == "CODETUNE_PROBE"]
    for name, attempt in attempts.items():
        try:
            attempt()
            open_ways.append(name)
        except OSError:
            pass
    import numpy
    return open_ways, float(numpy.arange(4).sum())
"""


def choose_tier(wanted: Literal["auto", "bubblewrap", "namespaces", "landlock", "none"]) -> Tier:
    """The strongest tier that works, or the one that was asked for if it does."""
    if wanted == "none":
        return "none"
    failures = []
    for tier in LADDER if wanted == "auto" else (wanted,):
        trouble = find_trouble(tier)
        if trouble is None:
            return tier
        failures.append(trouble)
    expected = f"one of {', '.join(LADDER)}" if wanted == "auto" else wanted
    raise CodetuneError(
        f"No sandbox works here, and no program is run without one. Tried: {'; '.join(failures)}. "
        f"Expected: {expected}. Install bubblewrap, or use Linux 5.13 or newer where containers allow Landlock and "
        "seccomp. evaluate.sandbox: none runs programs with your rights"
    )


def find_trouble(tier: Tier) -> str | None:
    """Why a tier cannot be used, or None."""
    with scratch_directory() as scratch, _bait() as (secret, port, abstract):
        (place := scratch / tier).mkdir()
        try:
            sandbox = Sandbox.start(tier, place)
        except SandboxError as why:
            return str(why)
        try:
            return _result(tier, sandbox, (port, abstract, str(secret), f"{secret}.new", os.getpid()))
        except SandboxError as why:
            return f"{tier}: {why}"
        finally:
            sandbox.close()


def _result(tier: Tier, sandbox: Sandbox, call: tuple[object, ...]) -> str | None:
    calls = pickle.dumps([call])
    request = program.Request(INTRUDER, "intrude", calls, (float(PROBE_SECONDS),), 1, PROBE_BYTES, "value")
    with sandbox.run(request, PROBE_SECONDS) as run:
        frame = next(run.frames())
        if not isinstance(frame, Frame) or frame.kind != program.VALUE:
            why = frame.content.decode(errors="replace") if isinstance(frame, Frame) else frame.how
            return f"{tier}: a plain program does not run in it ({why})"
        open_ways, total = serialization.decode(frame.content)
    if total != 6.0:
        return f"{tier}: a plain program does not compute in it"
    return f"{tier}: a program in it could {', '.join(open_ways)}" if open_ways else None


def _open_to_all(place: Path) -> Path:
    """Like $TMPDIR itself: what keeps the intruder out must be the sandbox."""
    (below := place / "bait").mkdir()
    place.chmod(0o755)
    below.chmod(0o777)
    return below


@contextmanager
def _bait() -> Iterator[tuple[Path, int, str]]:
    """A file that only the user can read, and servers that answer."""
    abstract = f"\0codetune-{secrets.token_hex(8)}"
    with (
        scratch_directory() as place,  # another than the intruder's own
        tempfile.NamedTemporaryFile(dir=_open_to_all(place)) as file,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        file.write(b"secret")
        file.flush()
        unix.bind(abstract)
        unix.listen()
        yield Path(file.name), tcp.getsockname()[1], abstract
