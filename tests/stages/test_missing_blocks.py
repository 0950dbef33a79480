"""From a data set to its finished rows: who does which block, what is left out, and when everything is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.errors import DataError
from codetune.launch.environment import Shard
from codetune.records import Example, Message
from codetune.selection.blocks import Block
from codetune.stages.row_stage import BLOCKS_AHEAD, BlockWork, do_missing, prefetch
from codetune.store.block_log import FinishedRows, read_logs


def example(number: int) -> Example:
    return Example(f"{number:016x}", (Message("user", str(number)), Message("assistant", "a")), f"a.jsonl:{number}")


def blocks(numbers: Iterable[int], size: int) -> list[Block]:
    rows = [example(number) for number in numbers]
    return [Block(at // size, tuple(rows[at : at + size])) for at in range(0, len(rows), size)]


class Worker:
    """A worker that writes down what it was asked."""

    def __init__(self) -> None:
        self.loaded = 0
        self.asked: list[str] = []

    def load(self) -> BlockWork[list[str]]:
        self.loaded += 1
        return BlockWork(lambda examples: [f"result of {row.instruction}" for row in examples], self._finish)

    def _finish(self, examples: Sequence[Example], prepared: list[str]) -> list[bytes]:
        self.asked += [row.id for row in examples]
        return [text.encode() for text in prepared]


def work_of(finish: Callable[[Sequence[Example]], list[bytes]]) -> BlockWork[None]:
    return BlockWork(lambda examples: None, lambda examples, _: finish(examples))


def do(todo: Iterable[Block], directory: Path, shard: Shard = (0, 1)) -> tuple[list[int], Worker]:
    worker = Worker()
    return list(do_missing(todo, directory, read_logs(directory), shard, worker.load)), worker


def test_each_block_is_committed_before_the_next_begins(tmp_path: Path) -> None:
    work = do_missing(blocks(range(5), 2), tmp_path, FinishedRows(), (0, 1), Worker().load)
    assert next(work) == 2
    assert len(read_logs(tmp_path)) == 2
    assert list(work) == [2, 1]
    assert read_logs(tmp_path).read(example(4).id) == b"result of 4"


def test_finished_rows_are_left_out_of_their_block(tmp_path: Path) -> None:
    do(blocks([0, 1, 4], 1), tmp_path)
    done, worker = do(blocks(range(6), 3), tmp_path)
    assert (done, worker.asked) == ([1, 2], [example(number).id for number in (2, 3, 5)])


def test_nothing_is_loaded_where_nothing_is_missing(tmp_path: Path) -> None:
    do(blocks(range(4), 2), tmp_path)
    done, worker = do(blocks(range(4), 3), tmp_path)
    assert (done, worker.loaded) == ([], 0)


def test_nothing_is_loaded_for_the_blocks_of_other_shards(tmp_path: Path) -> None:
    assert do(blocks(range(2), 1), tmp_path, (2, 3))[1].loaded == 0


def test_the_worker_is_loaded_once_for_all_blocks(tmp_path: Path) -> None:
    assert do(blocks(range(6), 2), tmp_path)[1].loaded == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_shards_in_any_order_do_every_row_once(rows: int, size: int, count: int, random: object) -> None:
    order = list(range(count))
    random.shuffle(order)  # type: ignore[attr-defined]
    with TemporaryDirectory() as name:
        directory, asked = Path(name), []
        for index in order:
            asked += do(blocks(range(rows), size), directory, (index, count))[1].asked
        assert sorted(asked) == [example(number).id for number in range(rows)]
        assert all(example(number).id in read_logs(directory) for number in range(rows))


def test_a_worker_that_fails_loses_its_block_only(tmp_path: Path) -> None:
    def work(examples: Sequence[Example]) -> list[bytes]:
        if examples[0].id == example(2).id:
            raise MemoryError
        return [b"done"] * len(examples)

    with pytest.raises(MemoryError):
        list(do_missing(blocks(range(6), 2), tmp_path, FinishedRows(), (0, 1), lambda: work_of(work)))
    assert do(blocks(range(6), 2), tmp_path)[0] == [2, 2]


def test_a_worker_that_forgets_a_row_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(do_missing(blocks(range(2), 2), tmp_path, FinishedRows(), (0, 1), lambda: work_of(lambda _: [b"one"])))
    assert len(read_logs(tmp_path)) == 0


def test_blocks_are_prepared_ahead_and_finished_in_their_order(tmp_path: Path) -> None:
    events: list[str] = []

    def note(event: str, examples: Sequence[Example]) -> None:
        events.append(f"{event} {examples[0].instruction}")

    def finish(examples: Sequence[Example], _: None) -> list[bytes]:
        while (
            len(events) == events.index(f"prepare {examples[0].instruction}") + 1 and int(examples[0].instruction) < 5
        ):
            time.sleep(0.001)  # until the next is prepared beside this one, which a device would be busy with
        note("finish", examples)
        return [b"done"]

    work = BlockWork(lambda examples: note("prepare", examples), finish)
    assert list(do_missing(blocks(range(6), 1), tmp_path, FinishedRows(), (0, 1), lambda: work)) == [1] * 6
    for event in ("prepare", "finish"):
        assert [line for line in events if line.startswith(event)] == [f"{event} {number}" for number in range(6)]
    assert events.index("prepare 1") < events.index("finish 0")


def test_no_more_is_prepared_than_is_soon_needed() -> None:
    taken = []
    items = prefetch((taken.append(number) or number for number in range(100)), BLOCKS_AHEAD)  # type: ignore[func-returns-value]
    assert next(items) == 0
    time.sleep(0.05)
    assert len(taken) <= BLOCKS_AHEAD + 1
    items.close()
    time.sleep(0.05)
    assert len(taken) <= BLOCKS_AHEAD + 1


@given(st.lists(st.integers()), st.integers(1, 5))
def test_what_is_made_ahead_is_what_is_made(items: list[int], count: int) -> None:
    assert list(prefetch(iter(items), count)) == items


def test_an_error_comes_after_all_that_came_before_it(tmp_path: Path) -> None:
    def damaged() -> Iterator[Block]:
        yield from blocks(range(4), 1)
        raise DataError("a.jsonl:5 is not JSON")

    done = []
    with pytest.raises(DataError, match=r"a\.jsonl:5"):
        done.extend(do_missing(damaged(), tmp_path, FinishedRows(), (0, 1), Worker().load))
    assert len(read_logs(tmp_path)) == 4
