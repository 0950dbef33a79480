"""Processes of codetune that are forks of one process, which has imported the libraries: importing them takes 5 s of a
core for each process, and most trainings of the tests less than one.

`Forks` starts that process and sends it what to run. A command that runs in a fork forks its workers, too; everything
else about them (pipes, sessions, signals, exit statuses) is that of a process that was started anew.

A command that a test is to stop midway gets the environment `slow(SECONDS)`: it waits so long after each step of a
training and after each append to a log, so that it cannot end before the test has seen that it began."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PAUSE = "TESTS_PAUSE_SECONDS"


def slow(seconds: float) -> dict[str, str]:
    """The environment of a forked command that waits so long after each step of a training and each append to a log."""
    return {PAUSE: str(seconds)}


class Forks:
    """The process with the libraries. `python -m MODULE ARGUMENTS` is done by a fork of it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._outputs = tempfile.TemporaryDirectory()
        self._count = 0

    def start(self, cwd: Path, environment: Mapping[str, str], module: str, *arguments: str) -> Forked:
        self._count += 1
        outputs = [Path(self._outputs.name, f"{self._count}.{name}") for name in ("stdout", "stderr")]
        command, surroundings = [module, *map(str, arguments)], {**os.environ, **environment}
        return Forked(self, self.ask("start", command, str(cwd), surroundings, list(map(str, outputs))), outputs)

    def ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        self._outputs.cleanup()


class Forked:
    """A process that `Forks` has started: the part of `subprocess.Popen` that tests use."""

    def __init__(self, forks: Forks, pid: int, outputs: Sequence[Path]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks, self._outputs = forks, outputs

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < until, self._texts()
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it has written to standard output and standard error, after its end."""
        self.wait(timeout)
        return self._texts()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _texts(self) -> tuple[str, str]:
        out, err = (path.read_text(encoding="utf-8") for path in self._outputs)
        return out, err


class _ForkedWorker:
    """In a forked command, `subprocess.Popen` of its workers: as that is called by `codetune.launch.workers`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert (stdin, start_new_session, command[:2]) == (subprocess.PIPE, True, (sys.executable, "-m"))
        lifeline, held = os.pipe()
        self.stdin: BinaryIO = os.fdopen(held, "wb", buffering=0)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _become(command[2:], Path.cwd(), env, (lifeline, stdout, stderr), pass_fds)
        os.close(lifeline)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _exit_status(self.pid, os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = _exit_status(self.pid, 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _exit_status(pid: int, options: int) -> int | None:
    ended, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    streams: Sequence[int],
    pass_fds: Sequence[int] = (),
) -> NoReturn:
    """Goes on as `python -m` with this command, which starts with the module: with these standard streams and nothing
    else of what the fork has open."""
    status: object = 1
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        kept = sorted({0, 1, 2, *pass_fds})
        for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(below + 1, above)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, buffering=1, closefd=False) for number, mode in enumerate("rww")
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        if PAUSE in environment:
            _slow_down(float(environment[PAUSE]))
        sys.argv = list(command)
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # noqa: BLE001 - as Python's own end of a program
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _slow_down(seconds: float) -> None:
    from codetune.store.block_log import BlockLog, LineLog
    from codetune.training.callbacks import TrainingCallbacks

    for kind, method in ((TrainingCallbacks, "on_step_end"), (BlockLog, "append"), (LineLog, "append")):
        setattr(kind, method, _pausing(getattr(kind, method), seconds))


def _pausing(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The method, and a pause after it. A worker inherits that of its command, and does not get another one."""

    def paused(caller: Any, *arguments: Any) -> Any:
        answer, until = method(caller, *arguments), time.monotonic() + seconds
        while time.monotonic() < until and not getattr(caller, "interrupted", False):
            time.sleep(0.01)
        return answer

    paused.pauses = True  # type: ignore[attr-defined]
    return method if hasattr(method, "pauses") else paused


def _serve() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints while it is imported
    _load_libraries()
    # A collection in a fork would write to, and so copy, every page that holds an object: 2 s each.
    gc.freeze()
    for line in requests:
        match json.loads(line):
            case ["start", command, cwd, environment, [out, err]]:
                answer: int | None = _start(command, Path(cwd), environment, out, err)
            case ["poll", pid]:
                answer = _exit_status(pid, os.WNOHANG)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(command: Sequence[str], cwd: Path, environment: Mapping[str, str], out: str, err: str) -> int:
    pid = os.fork()
    if pid == 0:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, flags, 0o600) for path in (out, err))]
        _become(command, cwd, environment, streams)
    return pid


def _load_libraries() -> None:
    from codetune.launch.environment import prepare_process

    prepare_process()
    import transformers.models.llama.modeling_llama  # noqa: F401

    import codetune.cli
    import codetune.launch.workers
    import codetune.render
    import codetune.stages.pipeline
    import codetune.training.train

    codetune.launch.workers.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=_ForkedWorker, PIPE=subprocess.PIPE
    )
    with contextlib.suppress(ImportError):
        import deepspeed.module_inject.auto_ep_layer
        import deepspeed.ops.op_builder.all_ops
        import deepspeed.ops.triton_ops
        import deepspeed.runtime.superoffload.superoffload_stage3  # noqa: F401


if __name__ == "__main__":
    _serve()
