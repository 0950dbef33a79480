"""A Slurm of this machine alone, with munge: its daemons run as the user of the tests, on free ports, in a directory of
their own. Debian has them as slurmctld, slurmd and munge."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MUNGED, CONTROLLER, NODE = DAEMONS = ("munged", "slurmctld", "slurmd")
# One processor: the tasks of an array run one after the other. No cgroup, which only root may make.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={directory}/munge.sock
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture
def one_machine_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Slurm that `sbatch` and its like speak to; without one that starts here the test is skipped, and says why."""
    if missing := [name for name in DAEMONS if _daemon(name) is None]:
        pytest.skip(f"no {', '.join(missing)} on this machine: apt install munge slurmctld slurmd slurm-client")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)  # a short one: the path of a socket has at most 107 bytes
        monkeypatch.setenv("SLURM_CONF", str(_configure(directory)))
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={directory}/munge.{ending}" for option, ending in files.items()]
        _start(stack, directory, MUNGED, "--foreground", "--force", *places)
        _start(stack, directory, CONTROLLER, "-D")
        _start(stack, directory, NODE, "-D")
        until = time.monotonic() + 30
        while _asked("sinfo", "--noheader", "--format=%T") != "idle":
            if time.monotonic() > until:
                said = [(directory / name).read_text(encoding="utf-8").splitlines()[-1:] for name in DAEMONS]
                pytest.skip(f"Slurm does not start here: {said}")
            time.sleep(0.1)
        yield


def await_jobs() -> None:
    """Returns when no job waits or runs."""
    until = time.monotonic() + 120
    while left := _asked("squeue", "--noheader"):
        assert time.monotonic() < until, left
        time.sleep(0.2)


def _configure(directory: Path) -> Path:
    for name in ("state", "spool"):
        (directory / name).mkdir()
    (directory / "munge.key").write_bytes(bytes(range(128)))
    (directory / "munge.key").chmod(0o600)
    path, host = directory / "slurm.conf", socket.gethostname().partition(".")[0]
    ports = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
    path.write_text(CONFIGURATION.format(host=host, directory=directory, user=directory.owner(), **ports), "utf-8")
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _start(stack: contextlib.ExitStack, directory: Path, name: str, *arguments: str) -> None:
    with (directory / name).open("wb") as log:
        process = subprocess.Popen([str(_daemon(name)), *arguments], stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _daemon(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
