"""A place to run programs that nobody trusts, from the outside: starts the zygote in one of the tiers, hands it one
program at a time, and reads what comes back. Which tier works on this machine is found in `probe.py`.

What holds in every tier but `none`, and by what:
- no network, Unix or abstract sockets, no other programs, no processes beside threads, no signals: seccomp;
- no file but the interpreter's own can be read: Landlock, and in the first two tiers a root that has no other;
- nothing can be written but a small scratch directory in memory, in the first two tiers; in the third nothing at all;
- memory, files, threads and descriptors by limits, time by a kill from here; each run is a process, which goes with it;
- no environment of the user, no descriptor but its own channel.

What cannot be stopped: faults of the kernel that the calls which stay allowed can reach; burning CPU up to the limit
and memory up to its limit, times the workers; a program that knows the answers by heart; reading the interpreter and
its packages. In the tier `landlock` programs can learn that a file exists, its size, owner and times, where a link
leads, and which processes live; not what a file holds, nor what a process does. Under bubblewrap, or as root that
cannot change its user, the threads of a program are bounded by its memory alone.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from codetune.errors import CodetuneError
from codetune.sandbox import namespaces
from codetune.sandbox.program import HEADER, HELLO, LARGEST_FRAME_BYTES, Request
from codetune.sandbox.zygote import READY

Tier = Literal["bubblewrap", "namespaces", "landlock", "none"]

ZYGOTE = "import sys; sys.path += sys.argv.pop(1).split(':'); from codetune.sandbox.zygote import main; main()"
# What bubblewrap's root needs of this package; the other tiers load it before they leave.
CODE = (
    "",
    *(
        f"sandbox/{name}"
        for name in (
            *("", "kernel", "landlock", "namespaces", "program", "seccomp"),
            *("serialization", "stand_ins", "zygote"),
        )
    ),
)
CODE_PLACE = Path("/codetune/code")
LIBRARIES = "LD_LIBRARY_PATH"  # without it some interpreters do not start
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
SCRATCH_BYTES = 64 * 2**20
MOST_BYTES = 2**30  # of all that one run sends
START_SECONDS, END_SECONDS = 60, 30


class SandboxError(CodetuneError):
    """The sandbox itself does not work; says nothing about any program."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call as the program's process tells it."""

    kind: bytes
    seconds: float
    content: bytearray


@dataclass(frozen=True, slots=True)
class Ended:
    """There is no further frame: the process is gone, or its time is up, or it broke the rules of the wire."""

    how: Literal["died", "late", "broke the rules"]


@dataclass(slots=True)
class Run:
    """A program that is running."""

    channel: socket.socket
    pid: int
    handle: int
    deadline: float
    received: int = 0

    def frames(self) -> Iterator[Frame | Ended]:
        """As they come; endless, unless `Ended` comes."""
        while True:
            try:
                yield self._next()
            except TimeoutError:
                yield Ended("late")
            except (EOFError, ConnectionResetError):
                yield Ended("died")

    def waited_seconds(self) -> float:
        """How long the process was ready to run and no CPU was free, by the scheduler's own count."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
        except OSError:  # a kernel that does not count, or a process that is gone
            return 0.0

    def _next(self) -> Frame | Ended:
        kind, seconds, length = HEADER.unpack(_receive(self.channel, HEADER.size, self.deadline))
        self.received += length
        if length > LARGEST_FRAME_BYTES or self.received > MOST_BYTES:
            return Ended("broke the rules")
        return Frame(kind, seconds, _receive(self.channel, length, self.deadline))


@dataclass(slots=True)
class Sandbox:
    """A zygote and the line to it; programs run in it one after the other."""

    tier: Tier
    process: subprocess.Popen[bytes]
    control: socket.socket
    broken: bool = field(default=False)

    @classmethod
    def start(cls, tier: Tier, directory: Path) -> Self:
        """`directory` is an empty one of its own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    _command(tier, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd=directory,
                    env=_environment(tier, directory),
                )
            except (OSError, SandboxError) as why:
                ours.close()
                raise SandboxError(f"{tier}: {why}") from why
        sandbox = cls(tier, process, ours)
        ours.settimeout(START_SECONDS)
        try:
            answer = ours.recv(4096)
        except (TimeoutError, ConnectionResetError):
            answer = b""
        if answer != READY:
            sandbox.close()
            raise SandboxError(answer.decode(errors="replace") or f"{tier}: it could not be started")
        return sandbox

    @contextmanager
    def run(self, request: Request, seconds: float) -> Iterator[Run]:
        """At the end of the block the program is gone, and all that it has left."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with ours:
            with theirs:
                socket.send_fds(self.control, [b"run"], [theirs.fileno()])
            run = None
            try:
                pid = _hello(ours)
                run = Run(ours, pid, os.pidfd_open(pid), time.monotonic() + seconds)
                content = pickle.dumps(request, protocol=5)
                with suppress(BrokenPipeError, ConnectionResetError):  # killed from outside: `frames` will say so
                    ours.settimeout(START_SECONDS)
                    ours.sendall(struct.pack("<Q", len(content)) + content)
                yield run
            finally:
                self._end(run)

    def close(self) -> None:
        self.broken = True
        self.control.close()
        self.process.kill()
        self.process.wait()

    def _end(self, run: Run | None) -> None:
        if run is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(run.handle, signal.SIGKILL)
            os.close(run.handle)
        self.control.settimeout(END_SECONDS)
        try:
            alive = self.control.recv(1) == b"."
        except (TimeoutError, ConnectionResetError):
            alive = False
        if not alive:  # it could not clear up after the program: the next one gets a new one
            self.close()


def _hello(channel: socket.socket) -> int:
    """The process id of the program, certified by the kernel and in our own counting; sent before it reads anything."""
    channel.settimeout(START_SECONDS)
    try:
        content, notes, _, _ = channel.recvmsg(HEADER.size, socket.CMSG_SPACE(12))
    except (TimeoutError, ConnectionResetError):
        content, notes = b"", []
    if content != HEADER.pack(HELLO, 0.0, 0) or not notes:
        raise SandboxError("a process could not be confined, so it was given nothing to run")
    return int(struct.unpack("3i", notes[0][2][:12])[0])


def _receive(channel: socket.socket, length: int, deadline: float) -> bytearray:
    content = bytearray(length)
    view = memoryview(content)
    while view:
        channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        count = channel.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return content


def readable_paths() -> list[Path]:
    """What a Python program needs to run: the standard library, installed packages, the system's libraries. None of
    them lies in another."""
    base = Path(sys.base_prefix)
    own = [sysconfig.get_path("stdlib"), str(base / "lib"), str(base / sys.platlibdir), *_packages()]
    places = [*own, *os.environ.get(LIBRARIES, "").split(":"), *SYSTEM_LIBRARIES, *SYSTEM_FILES]
    found = dict.fromkeys(Path(place) for place in places if Path(place).is_absolute() and Path(place).exists())
    return [path for path in found if not any(other in path.parents for other in found)]


def _packages() -> list[str]:
    """The directories of installed packages among the places of import; never the user's own."""
    installed = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages", "lib-dynload")]
    return [str(Path(place).resolve()) for place in installed]


def _command(tier: Tier, descriptor: int) -> list[str]:
    python = str(Path(sys.executable).resolve())
    package = Path(__file__).resolve().parents[1]
    places = [*_packages(), str(CODE_PLACE if tier == "bubblewrap" else package.parent)]
    paths = [str(path) for path in readable_paths()]
    zygote = [python, "-P", "-S", "-c", ZYGOTE, ":".join(places), str(descriptor), tier, *paths]
    return [*_bubblewrap(package, [python, *paths]), *zygote] if tier == "bubblewrap" else zygote


def _bubblewrap(package: Path, paths: list[str]) -> list[str]:
    """Documentation: bwrap(1)."""
    binds = [(path, path) for path in paths]
    for name in CODE:
        file = f"{name or '__init__'}.py" if not name.endswith("/") else f"{name}__init__.py"
        binds.append((str(package / file), str(CODE_PLACE / "codetune" / file)))
    return [
        *(_find_bubblewrap(), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(word for source, place in binds for word in ("--ro-bind", source, place)),
        *(word for device in namespaces.DEVICES for word in ("--dev-bind", str(device), str(device))),
        *("--size", str(SCRATCH_BYTES), "--tmpfs", str(namespaces.SCRATCH)),
        *("--remount-ro", "/", "--hostname", "sandbox", "--chdir", str(namespaces.SCRATCH), "--"),
    ]


def _find_bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("no bwrap on the path")
    return found


def _environment(tier: Tier, directory: Path) -> Mapping[str, str]:
    """Nothing of the user's but where libraries lie. Hashes are seeded so that verdicts repeat; one thread, as a fork
    takes one along."""
    home = str(directory if tier in ("landlock", "none") else namespaces.SCRATCH)
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": home,
        "TMPDIR": home,
        "PYTHONHASHSEED": "0",
        **({LIBRARIES: os.environ[LIBRARIES]} if LIBRARIES in os.environ else {}),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
