"""Completions by several processes: each takes its part, and what comes out is what one process writes."""

from __future__ import annotations

import json
from pathlib import Path

from codetune import benchmarking
from codetune.records import ALONE, Place
from codetune.work.completing import complete, completed_rows, order
from codetune.work.contestants import contestant
from tests.small_world import desk_of, make_small_world

SAMPLED = {"generate__samples_per_task": 3, "generate__temperature": 0.9}


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    written = []
    for processes in (1, 2):
        desk = desk_of(make_small_world(tmp_path / str(processes), 6), launch__processes=processes, **SAMPLED)
        bench = benchmarking.open_bench(desk, "tasks.jsonl")
        result = benchmarking.generate(desk, bench, contestant(desk, "base"))
        written.append(result.artefact.read_text())
        assert (result.rows, result.reused) == (9, 0)
        assert not desk.run.parts(result.artefact).exists()
    assert written[0] == written[1]


def test_every_rank_takes_each_nth_item_and_logs_it_by_itself(tmp_path: Path) -> None:
    desk = desk_of(make_small_world(tmp_path, 6), **SAMPLED)
    bench, base = benchmarking.open_bench(desk, "tasks.jsonl"), contestant(desk, "base")
    missing = [(f"Small/{task}", number) for task in range(3) for number in range(3)]
    alone = order(base, ("tasks.jsonl", bench.file), missing, tmp_path / "alone")
    told: list[int] = []
    assert complete(desk.project, alone, ALONE, told.append) == 9
    assert len(told) == 9
    shared = order(base, ("tasks.jsonl", bench.file), missing, tmp_path / "shared")
    assert [complete(desk.project, shared, Place(rank, 4, rank, 4), told.append) for rank in range(4)] == [3, 2, 2, 2]
    assert completed_rows(tmp_path / "shared") == completed_rows(tmp_path / "alone")
    second = (tmp_path / "shared" / "completions-1.jsonl").read_text().splitlines()
    assert {(row["task_id"], row["sample"]) for row in map(json.loads, second)} == {("Small/0", 1), ("Small/1", 2)}


def test_an_order_travels_as_json(tmp_path: Path) -> None:
    desk = desk_of(make_small_world(tmp_path, 6))
    sent = order(contestant(desk, "base"), ("tasks.jsonl", tmp_path / "tasks.jsonl"), [("Small/0", 0)], tmp_path)
    arrived = type(sent)(**json.loads(json.dumps({name: getattr(sent, name) for name in sent.__slots__})))
    complete(desk.project, arrived, ALONE, lambda tokens: None)
    assert list(completed_rows(tmp_path)) == [("Small/0", 0)]
