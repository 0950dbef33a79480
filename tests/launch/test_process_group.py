"""Process groups and their stores. Groups of a whole training are tested in training/test_ranks.py."""

from __future__ import annotations

import multiprocessing
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest

from codetune.errors import CodetuneError
from codetune.launch import process_group
from codetune.launch.process_group import SINGLE_PROCESS, file_store, join_process_group, prefix_store, rendezvous_store
from codetune.records import Rank

HOST = socket.gethostname()


def test_reductions_of_a_single_process_return_their_input() -> None:
    assert SINGLE_PROCESS.sum([2.0]) == [2.0]
    assert SINGLE_PROCESS.max([3.0]) == [3.0]
    assert SINGLE_PROCESS.min(4.0) == 4.0


def test_a_group_is_not_misled_by_keys_of_an_earlier_group_in_the_same_store(tmp_path: Path) -> None:
    begin = multiprocessing.get_context("spawn").Process
    ranks = [begin(target=_join_twice, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0, 0]


def _join_twice(rank: int, directory: Path) -> None:
    store = file_store(directory / "store", 2)
    for number in range(2):
        if rank == 0:
            time.sleep(1)  # so that rank 1 reads the store first
        with join_process_group(Rank(rank, 2, rank, 2), lambda at=number: prefix_store(store, str(at))) as group:
            assert group.sum([rank + 1]) == [3]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (
            Rank(0, 4, 0, 2),
            rf"Ranks 1, 2, 3 of 4 \(machine 0, 1 of 2\) did not connect .* Present: {socket.gethostname()}\.",
        ),
        (Rank(2, 4, 0, 2), r"Rank 0 did not answer within .* the same command on every machine"),
    ],
)
def test_a_machine_that_does_not_come_in_time_is_named(
    rank: Rank, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(CodetuneError, match=message):
        rendezvous_store(rank)
