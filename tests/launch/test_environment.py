"""Shards, ranks and machines as read from the command line and the environment, and what is set there for libraries
and workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.errors import UsageError
from codetune.launch.environment import (
    Node,
    WorkerTask,
    begun_assignment,
    current_node,
    current_rank,
    parse_shard,
    prepare_process,
    single_rank_environment,
    thread_count,
    worker_environment,
    worker_task,
)
from codetune.records import ALONE, Rank


@given(st.data())
def test_every_shard_below_its_count_is_parsed(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10_000))
    index = data.draw(st.integers(0, count - 1))
    assert parse_shard(f"{index}/{count}") == (index, count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8/8", "from 0 to 7"),
        ("1/1", "from 0 to 0"),
        ("0/0", "N of at least 1"),
        ("a/b", "two whole numbers"),
        ("1", "two whole numbers"),
        ("1/2/3", "two whole numbers"),
        ("-1/2", "two whole numbers"),
        ("1 / 2", "two whole numbers"),
        ("1/2\n", "two whole numbers"),
        ("", "two whole numbers"),
    ],
)
def test_an_impossible_shard_is_an_error_that_names_a_possible_one(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_shard(text)


@pytest.mark.parametrize(
    ("task", "count", "first", "last", "shard"),
    [("0", "4", "0", "3", (0, 4)), ("3", "4", "0", "3", (3, 4)), ("5", "2", "4", "5", (1, 2))],
)
def test_a_task_of_a_job_array_knows_its_shard(
    task: str, count: str, first: str, last: str, shard: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, task, count, first, last)
    assert parse_shard("auto") == shard


@pytest.mark.parametrize("task", ["0", "2", "3"])
def test_a_job_array_with_gaps_does_not_say_how_many_shards_there_are(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, task, "3", "0", "3")
    with pytest.raises(UsageError, match=r"numbers from 0 to 3.*no gaps.*--shard \$SLURM_ARRAY_TASK_ID/N"):
        parse_shard("auto")


def test_without_a_job_array_no_shard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(UsageError, match="a task of a job array"):
        parse_shard("auto")


def set_array(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    for name, value in zip(("ID", "COUNT", "MIN", "MAX"), values, strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)


def test_every_process_has_the_threads_that_codetune_sets_whatever_the_launcher_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    prepare_process()
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(thread_count())


def test_a_variable_that_the_user_set_keeps_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    prepare_process()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


def test_the_thread_count_follows_the_cores_that_the_process_may_use() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from codetune.launch.environment import thread_count; print(thread_count())"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "1\n"


SLURM = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04]"}
SLURM |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "123"}


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which no launcher has set a variable."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", *SLURM)
    for name in names:  # set first, so that what is written meanwhile is taken back afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_a_launcher_a_process_is_alone(no_launcher: pytest.MonkeyPatch) -> None:
    assert current_rank() == ALONE
    no_launcher.setenv("RANK", "3")  # a scheduler's, which means the machine
    no_launcher.setenv("WORLD_SIZE", "4")
    assert current_rank() == ALONE


def test_the_rank_is_what_torchrun_has_set(no_launcher: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        no_launcher.setenv(name, value)
    assert current_rank() == Rank(5, 8, 1, 4)
    no_launcher.setenv("RANK", "first")
    with pytest.raises(UsageError, match="not all numbers"):
        current_rank()


def test_tasks_of_srun_are_the_ranks(no_launcher: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        no_launcher.setenv(name, value)
    prepare_process()
    assert current_rank() == Rank(5, 8, 1, 4)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu03", "20123")


def test_one_task_of_srun_on_each_machine_is_a_command_on_each(no_launcher: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        no_launcher.setenv(name, value)
    prepare_process()
    assert current_rank() == ALONE
    assert current_node(2) == Node(1, 2)


def test_a_batch_script_outside_srun_is_alone(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("SLURM_PROCID", "0")
    no_launcher.setenv("SLURM_JOB_ID", "123")
    prepare_process()
    assert current_rank() == ALONE


def test_a_machine_without_its_number_or_the_first_host_is_an_error(no_launcher: pytest.MonkeyPatch) -> None:
    assert current_node(1) == Node(0, 1)
    with pytest.raises(UsageError, match=r"launch.nodes is 3, and NODE_RANK \(now None\).*up to NODE_RANK=2"):
        current_node(3)
    no_launcher.setenv("NODE_RANK", "2")
    with pytest.raises(UsageError, match=r"MASTER_ADDR \(now None\)"):
        current_node(3)
    no_launcher.setenv("MASTER_ADDR", "first")
    assert current_node(3) == Node(2, 3)
    with pytest.raises(UsageError, match="NODE_RANK"):
        current_node(2)


def test_a_worker_gets_the_variables_of_torchrun_and_its_task(no_launcher: pytest.MonkeyPatch) -> None:
    variables = worker_environment(1, 4, Node(0, 1), WorkerTask(Path("/tmp/a:b/job.json"), 7))
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    assert current_rank() == Rank(1, 4, 1, 4)
    assert worker_task() == WorkerTask(Path("/tmp/a:b/job.json"), 7)
    assert worker_task() is None  # a child of a worker is no worker


def test_a_single_rank_has_the_variables_of_a_launcher_for_a_while(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("MASTER_PORT", "1")
    with single_rank_environment() as here:
        assert here == current_rank() == ALONE
        assert os.environ["RANK"] == "0"
    assert "RANK" not in os.environ
    assert os.environ["MASTER_PORT"] == "1"


@pytest.mark.parametrize(
    ("words", "begun"),
    [
        (["train", "--set", "train.tf32", "="], "train.tf32="),
        (["train", "--set", "train.tf32", "=", "t"], "train.tf32=t"),
        (["train", "--set", "=", "train.tf32", "=", "t"], "train.tf32=t"),
        (["train", "--set", "train.t"], None),
        (["train", "--set", "seed", "=", "7", "--pad-mode", "="], None),
    ],
)
def test_an_assignment_is_found_in_the_words_that_bash_breaks_it_into(
    words: list[str], begun: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_WORDS", "\n".join(["codetune", *words, "after the cursor"]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert begun_assignment() is None
    monkeypatch.setenv("_CODETUNE_COMPLETE", "complete_bash")
    assert begun_assignment() == begun
