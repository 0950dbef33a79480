"""Locks: one process at a time makes an output, and the process that holds a lock is named."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codetune.errors import BusyError
from codetune.store.locks import holders, locked, waiting
from codetune.store.run_directory import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_second_process_is_refused_with_the_name_of_the_holder(run: Run) -> None:
    with (
        held_elsewhere(run, "score", None) as holder,
        pytest.raises(BusyError, match=busy_with(holder)),
    ):
        enter(run, "score", None)


def test_who_holds_a_lock_can_be_asked_without_taking_it(run: Run) -> None:
    assert holders(run, "score") == []
    with held_elsewhere(run, "score", None) as holder:
        assert [each.pid for each in holders(run, "score")] == [holder.pid]
        assert [each.pid for each in holders(run, "score")] == [holder.pid]
    assert holders(run, "score") == []
    enter(run, "score", None)


def test_every_shard_at_work_is_named_once(run: Run) -> None:
    with held_elsewhere(run, "score", (0, 3)) as first, held_elsewhere(run, "score", (2, 3)) as other:
        assert [each.pid for each in holders(run, "score")] == [first.pid, other.pid]


def test_a_holder_that_has_not_written_its_record_is_another_process(run: Run) -> None:
    with locked(run, "score", None):
        (run.directory / ".locks" / "score").write_text("proc")
        assert [each.named for each in holders(run, "score")] == ["Another process"]


def test_only_the_present_holder_is_named(run: Run) -> None:
    enter(run, "score", None)
    with locked(run, "score", None), pytest.raises(BusyError) as busy:
        enter(run, "score", None)
    assert str(busy.value).count("Process ") == 1


def test_a_killed_process_frees_its_lock(run: Run) -> None:
    with held_elsewhere(run, "score", None) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        enter(run, "score", None)


def test_different_outputs_are_locked_independently(run: Run) -> None:
    with locked(run, "score", None), locked(run, "generate-b-m", None):
        enter(run, "embed", None)


def test_a_lock_is_free_again_after_an_error(run: Run) -> None:
    with contextlib.suppress(ZeroDivisionError), locked(run, "score", None):
        raise ZeroDivisionError
    enter(run, "score", None)


@pytest.mark.parametrize("shard", [(0, 2), None])
def test_a_shard_excludes_the_same_shard_and_unsharded_runs(shard: tuple[int, int] | None, run: Run) -> None:
    with (
        held_elsewhere(run, "score", (0, 2)) as holder,
        pytest.raises(BusyError, match=busy_with(holder)),
    ):
        enter(run, "score", shard)


@pytest.mark.parametrize("shard", [(1, 2), (0, 3)])
def test_other_shards_are_not_excluded(shard: tuple[int, int], run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)):
        enter(run, "score", shard)


def test_an_unsharded_run_excludes_every_shard(run: Run) -> None:
    with (
        held_elsewhere(run, "score", None) as holder,
        pytest.raises(BusyError, match=busy_with(holder)),
    ):
        enter(run, "score", (0, 2))


def test_a_working_shard_is_named_after_another_has_ended(run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)) as holder:
        with locked(run, "score", (1, 2)):
            pass
        with pytest.raises(BusyError, match=busy_with(holder)):
            enter(run, "score", None)


@pytest.mark.parametrize("shard", [(0, 2), None])
def test_a_shard_that_was_refused_is_not_named(shard: tuple[int, int] | None, run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)) as holder:
        with pytest.raises(BusyError, match=busy_with(holder)):
            enter(run, "score", (0, 2))
        with pytest.raises(BusyError, match=busy_with(holder)):
            enter(run, "score", shard)


def test_a_run_that_ended_before_the_shards_began_is_not_named(run: Run) -> None:
    enter(run, "score", None)
    with (
        held_elsewhere(run, "score", (0, 2)) as holder,
        pytest.raises(BusyError, match=busy_with(holder)),
    ):
        enter(run, "score", None)


def test_an_output_whose_name_holds_a_slash_is_locked_below_the_run(run: Run) -> None:
    with locked(run, "generate-a/b-m", None):
        assert [path.name for path in (run.directory / ".locks").iterdir()] == ["generate-a-b-m"]


def test_a_waiting_process_continues_when_the_holder_has_ended(run: Run) -> None:
    with held_elsewhere(run, "score-parts", None) as holder:
        program = (
            "from pathlib import Path; from codetune.store.locks import waiting\n"
            "from codetune.store.run_directory import Run\n"
            "print('waits', flush=True)\n"
            f"with waiting(Run(Path({str(run.directory)!r})), 'score-parts'): print('holds')"
        )
        waiter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(0.2)
        holder.kill()
        assert waiter.communicate(timeout=10)[0] == "holds\n"
    with waiting(run, "score-parts"):
        pass


def busy_with(holder: subprocess.Popen[str]) -> str:
    return rf"Process {holder.pid} on .* is already running score"


def enter(run: Run, output: str, shard: tuple[int, int] | None) -> None:
    with locked(run, output, shard):
        pass


@contextlib.contextmanager
def held_elsewhere(run: Run, output: str, shard: tuple[int, int] | None) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until the block ends."""
    program = (
        "import time; from pathlib import Path; from codetune.store.locks import locked\n"
        "from codetune.store.run_directory import Run\n"
        f"with locked(Run(Path({str(run.directory)!r})), {output!r}, {shard!r}):\n"
        "    print('holds', flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "holds\n"
        yield holder
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()
