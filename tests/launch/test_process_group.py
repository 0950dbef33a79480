"""Processes that meet. What teams of a whole training say to each other is tested in training/test_ranks.py."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from codetune.launch.process_group import SOLO, apart, group, meet_in
from codetune.records import Rank


def test_alone_everything_is_heard_by_oneself() -> None:
    assert (SOLO.sums([2.0]), SOLO.most([3.0]), SOLO.least(4.0)) == ([2.0], [3.0], 4.0)


def test_a_team_is_not_misled_by_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    begin = multiprocessing.get_context("spawn").Process
    workers = [begin(target=_meet_twice, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(30)
    assert [process.exitcode for process in workers] == [0, 0]


def _meet_twice(rank: int, directory: Path) -> None:
    store = meet_in(directory / "meeting", 2)
    for number in range(2):
        if rank == 0:
            time.sleep(1)  # so that the other one looks for it first
        with group(Rank(rank, 2, rank, 2), lambda at=number: apart(store, str(at))) as both:
            assert both.sums([rank + 1]) == [3]
