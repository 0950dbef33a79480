"""Workers are started, watched and ended: small programs that send what a worker sends, and die as workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from codetune.errors import CodetuneError, DataError, WorkerError
from codetune.launch.environment import Node
from codetune.launch.workers import (
    JSON,
    Progress,
    WorkerSpec,
    empty_standard_input,
    run_independent_workers,
    run_workers,
)

BEGIN = """
import os, signal, sys, time
from codetune.launch.environment import worker_task, current_rank
from codetune.launch.workers import events_to_command
task, here = worker_task(), current_rank()
print(f"printed by {here.rank}", flush=True)
with events_to_command(task.descriptor) as send:
"""


@pytest.fixture
def shown() -> list[str]:
    return []


def run(
    directory: Path,
    program: str,
    count: int,
    shown: list[str],
    progress: list[tuple[int, Progress]] | None = None,
) -> list[JSON]:
    """Runs the body of a worker in `count` processes."""
    reports = [] if progress is None else progress
    spec = workers(directory, program, count)
    return run_workers(spec, lambda rank, message: reports.append((rank, message)), shown.append)


def workers(directory: Path, program: str, count: int, where: Node = Node(0, 1)) -> WorkerSpec:  # noqa: B008 - it is frozen
    file = directory / "worker.py"
    file.write_text(BEGIN + textwrap.indent(textwrap.dedent(program), "    "), encoding="utf-8")
    return WorkerSpec((sys.executable, str(file)), count, where, directory / "job.json")


def test_progress_of_every_worker_is_reported_and_results_come_by_rank(tmp_path: Path, shown: list[str]) -> None:
    progress: list[tuple[int, Progress]] = []
    program = """
        send("progress", {"step": here.rank})
        time.sleep(0.2 * (3 - here.rank))
        send("result", [here.rank, here.world_size, here.local_rank, str(task.job.name)])
    """
    assert run(tmp_path, program, 3, shown, progress) == [[rank, 3, rank, "job.json"] for rank in range(3)]
    assert sorted(rank for rank, _ in progress) == [0, 1, 2]
    assert all(message == {"step": rank} for rank, message in progress)


def test_only_the_output_of_rank_0_is_shown(tmp_path: Path, shown: list[str]) -> None:
    run(tmp_path, 'send("result", None)', 3, shown)
    assert "".join(shown) == "printed by 0\n"


def test_ranks_of_the_second_machine_follow_those_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first")
    program = 'send("result", [here.rank, here.world_size, here.local_rank, os.environ["MASTER_ADDR"]])'
    planned = workers(tmp_path, program, 2, Node(1, 3))
    assert run_workers(planned, lambda rank, message: None, lambda text: None) == [
        [2, 6, 0, "first"],
        [3, 6, 1, "first"],
    ]


def test_the_error_of_a_worker_is_the_commands_own(tmp_path: Path, shown: list[str]) -> None:
    program = """
        from codetune.errors import DataError
        if here.rank == 1:
            raise DataError("rows.jsonl:3 is bad")
        time.sleep(60)
    """
    began = time.monotonic()
    with pytest.raises(DataError, match=r"^rows\.jsonl:3 is bad$"):
        run(tmp_path, program, 2, shown)
    assert time.monotonic() - began < 10
    assert "Traceback" not in "".join(shown)


def test_a_worker_that_is_killed_ends_the_others_and_is_the_one_named(tmp_path: Path, shown: list[str]) -> None:
    # The other one loses its connection and prints as much as torch does, perhaps before the command sees the death.
    program = """
        if here.rank == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")
    """
    with pytest.raises(WorkerError, match=r"^Process 1 of 2 \(pid \d+\) was killed by SIGKILL \(.*memory"):
        run(tmp_path, program, 2, shown)
    assert "Connection closed" not in "".join(shown)


def test_the_last_output_of_a_worker_that_dies_of_an_unknown_error_is_shown(tmp_path: Path, shown: list[str]) -> None:
    program = """
        if here.rank == 1:
            raise ZeroDivisionError("of rank 1")
        time.sleep(1)
        raise RuntimeError("Connection closed by peer")
    """
    with pytest.raises(WorkerError, match=r"Process 1 of 2 .* ended with status 1"):
        run(tmp_path, program, 2, shown)
    text = "".join(shown)
    assert "ZeroDivisionError: of rank 1" in text
    assert "Connection closed" not in text


def test_a_named_error_is_the_cause_though_others_fail_before_it_is_sent(tmp_path: Path, shown: list[str]) -> None:
    program = """
        from codetune.errors import CodetuneError
        if here.rank == 0:
            raise RuntimeError("Connection closed by peer")
        time.sleep(0.3)
        raise CodetuneError("the disk is full")
    """
    with pytest.raises(CodetuneError, match="the disk is full"):
        run(tmp_path, program, 2, shown)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_is_forwarded_and_it_waits_for_the_checkpoints(
    tmp_path: Path, shown: list[str], number: signal.Signals
) -> None:
    program = """
        try:
            (here_is := open(f"{sys.argv[0]}.{here.rank}", "w")).close()
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(1.5)  # as long as a checkpoint takes
            open(f"{sys.argv[0]}.{here.rank}.saved", "w").close()
            raise
    """
    earlier = signal.getsignal(number)
    when_up(tmp_path, 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, program, 2, shown)
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert signal.getsignal(number) is earlier


def test_a_second_signal_kills_the_workers(tmp_path: Path, shown: list[str]) -> None:
    program = """
        open(f"{sys.argv[0]}.{here.rank}", "w").close()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    """

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    when_up(tmp_path, 2, twice)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, program, 2, shown)
    assert time.monotonic() - began < 15


def test_a_worker_that_loses_its_connection_to_an_interrupted_one_has_not_failed(
    tmp_path: Path, shown: list[str]
) -> None:
    program = """
        open(f"{sys.argv[0]}.{here.rank}", "w").close()
        if here.rank == 0:
            time.sleep(60)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # waits for the other one, inside of torch
        time.sleep(2)
        raise RuntimeError("Connection closed by peer")
    """
    when_up(tmp_path, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, program, 2, shown)


def test_workers_that_finish_in_spite_of_the_signal_return_their_results(tmp_path: Path, shown: list[str]) -> None:
    program = """
        open(f"{sys.argv[0]}.{here.rank}", "w").close()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            send("result", "all of it")
    """
    when_up(tmp_path, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(tmp_path, program, 2, shown) == ["all of it"] * 2


def test_a_question_of_a_library_in_a_worker_is_not_answered(tmp_path: Path, shown: list[str]) -> None:
    assert run(tmp_path, "    send('result', sys.stdin.read())", 1, shown) == [""]


@pytest.mark.parametrize("is_closed", [False, True], ids=["a pipe with an answer", "closed"])
def test_standard_input_is_empty_whatever_waits_there(is_closed: bool) -> None:
    own, (reader, writer) = os.dup(0), os.pipe()
    os.write(writer, b"yes\n")
    os.dup2(reader, 0)
    if is_closed:
        os.close(0)
    try:
        empty_standard_input()
        assert os.read(0, 9) == b""
    finally:
        os.dup2(own, 0)
        for descriptor in (own, reader, writer):
            os.close(descriptor)


def test_workers_die_with_their_command(tmp_path: Path) -> None:
    planned = workers(tmp_path, 'open(f"{sys.argv[0]}.{os.getpid()}", "w").close(); time.sleep(60)', 2)
    command = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from codetune.launch.workers import *\nfrom codetune.launch.environment import Node\n"
            "run_workers(WorkerSpec((sys.executable, sys.argv[1]), 2, Node(0, 1), Path('x')), print, print)",
            planned.command[1],
        ],
    )
    pids = [int(file.suffix[1:]) for file in wait_for(tmp_path, 2)]
    command.kill()
    command.wait()
    until = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < until, "a worker outlived its command"
        time.sleep(0.05)


def when_up(directory: Path, count: int, act: Callable[[], None]) -> None:
    threading.Thread(target=lambda: (wait_for(directory, count), time.sleep(0.2), act()), daemon=True).start()


def wait_for(directory: Path, count: int) -> list[Path]:
    until = time.monotonic() + 60
    while len(files := [file for file in directory.glob("worker.py.*") if file.suffix[1:].isdigit()]) < count:
        assert time.monotonic() < until
        time.sleep(0.05)
    return files


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_workers_of_their_own_run_side_by_side_each_with_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of the first two waits for the other; the third gets the GPUs that are free again.
    monkeypatch.setenv("RANK", "0")
    program = """
        gpus = os.environ["CUDA_VISIBLE_DEVICES"]
        print("RANK" in os.environ, flush=True)
        log = open("gpus.log", "a"); log.write(gpus + "\\n"); log.flush()
        while len(set(open("gpus.log").read().split())) < 2:
            time.sleep(0.01)
        send("result", None)
    """
    monkeypatch.chdir(tmp_path)
    shown: list[tuple[int, str]] = []
    ended = list(
        run_independent_workers(
            [workers(tmp_path, program, 1)] * 3, [["0", "1"], ["2", "3"]], lambda *said: shown.append(said)
        )
    )
    assert sorted(ended) == [(0, None), (1, None), (2, None)]
    assert set((tmp_path / "gpus.log").read_text().split()) == {"0,1", "2,3"}
    assert "".join(text for _, text in shown).count("False") == 3


def test_a_worker_of_its_own_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    failing = workers(tmp_path, 'raise errors.DataError("rows.jsonl:3 is bad")', 1)
    (tmp_path / "good").mkdir()
    good = workers(tmp_path / "good", 'send("result", None)', 1)
    file = Path(failing.command[1])
    file.write_text(file.read_text().replace("import os,", "from codetune import errors\nimport os,"))
    ended = dict(run_independent_workers([failing, good], [[]], lambda index, text: None))
    assert isinstance(ended[0], DataError)
    assert ended[1] is None


def test_an_interrupt_reaches_all_workers_of_their_own_and_starts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
        open(f"began-{os.getpid()}", "w").close()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            open("saved-" + str(os.getpid()), "w").close()
            raise
    """
    monkeypatch.chdir(tmp_path)

    def interrupt() -> None:
        while len(list(tmp_path.glob("began-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(run_independent_workers([workers(tmp_path, program, 1)] * 3, [[], []], lambda index, text: None))
    assert len(list(tmp_path.glob("saved-*"))) == 2
