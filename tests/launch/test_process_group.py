"""Process groups and their stores. Groups of a whole training are tested in training/test_ranks.py."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from codetune.launch.process_group import SINGLE_PROCESS, file_store, join_process_group, prefix_store
from codetune.records import Rank


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
