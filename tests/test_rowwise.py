"""From a data set to its finished rows: who does which block, what is left out, and when everything is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.launch import Shard
from codetune.parts import Rows, read_logs
from codetune.records import Example, Message, Refusal
from codetune.rowwise import count_missing, do_missing, survey


@dataclass(frozen=True, slots=True)
class Block:
    index: int
    examples: tuple[Example, ...]


def example(number: int) -> Example:
    return Example(f"{number:016x}", (Message("user", str(number)), Message("assistant", "a")), f"a.jsonl:{number}")


def blocks(numbers: Iterable[int], size: int) -> list[Block]:
    rows = [example(number) for number in numbers]
    return [Block(at // size, tuple(rows[at : at + size])) for at in range(0, len(rows), size)]


class Desk:
    """A worker that writes down what it was asked."""

    def __init__(self) -> None:
        self.loaded = 0
        self.asked: list[str] = []

    def load(self) -> Callable[[Sequence[Example]], list[bytes]]:
        self.loaded += 1
        return self._work

    def _work(self, examples: Sequence[Example]) -> list[bytes]:
        self.asked += [row.id for row in examples]
        return [f"result of {row.instruction}".encode() for row in examples]


def do(todo: Iterable[Block], directory: Path, shard: Shard = (0, 1)) -> tuple[list[int], Desk]:
    desk = Desk()
    return list(do_missing(todo, directory, read_logs(directory), shard, desk.load)), desk


ROWS = [example(3), Refusal(None, "duplicate of a.jsonl:1", "a.jsonl:2"), example(1), Refusal("7", "empty answer", "x")]


def test_a_survey_keeps_the_order_of_the_data_set() -> None:
    assert list(survey(ROWS).rows()) == [example(3).id, ROWS[1], example(1).id, ROWS[3]]


def test_every_row_is_usable_or_refused() -> None:
    found = survey([*ROWS, Refusal(None, "duplicate of a.jsonl:3", "a.jsonl:5")])
    assert found.usable == 2
    assert found.refused() == {"duplicate": 2, "empty answer": 1}


def test_the_least_id_is_no_refusal() -> None:
    found = survey([example(0)])
    assert (list(found.rows()), found.usable) == (["0" * 16], 1)


def test_an_empty_data_set_has_no_rows() -> None:
    assert (list(survey([]).rows()), survey([]).usable) == ([], 0)


def test_each_block_is_committed_before_the_next_begins(tmp_path: Path) -> None:
    work = do_missing(blocks(range(5), 2), tmp_path, Rows(), (0, 1), Desk().load)
    assert next(work) == 2
    assert len(read_logs(tmp_path)) == 2
    assert list(work) == [2, 1]
    assert read_logs(tmp_path).read(example(4).id) == b"result of 4"


def test_finished_rows_are_left_out_of_their_block(tmp_path: Path) -> None:
    do(blocks([0, 1, 4], 1), tmp_path)
    done, desk = do(blocks(range(6), 3), tmp_path)
    assert (done, desk.asked) == ([1, 2], [example(number).id for number in (2, 3, 5)])


def test_nothing_is_loaded_where_nothing_is_missing(tmp_path: Path) -> None:
    do(blocks(range(4), 2), tmp_path)
    done, desk = do(blocks(range(4), 3), tmp_path)
    assert (done, desk.loaded) == ([], 0)


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
        assert count_missing(survey(map(example, range(rows))), read_logs(directory)) == 0


def test_a_worker_that_fails_loses_its_block_only(tmp_path: Path) -> None:
    def work(examples: Sequence[Example]) -> list[bytes]:
        if examples[0].id == example(2).id:
            raise MemoryError
        return [b"done"] * len(examples)

    with pytest.raises(MemoryError):
        list(do_missing(blocks(range(6), 2), tmp_path, Rows(), (0, 1), lambda: work))
    assert do(blocks(range(6), 2), tmp_path)[0] == [2, 2]


def test_a_worker_that_forgets_a_row_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(do_missing(blocks(range(2), 2), tmp_path, Rows(), (0, 1), lambda: lambda _: [b"one"]))
    assert len(read_logs(tmp_path)) == 0


def test_refused_rows_are_not_missing() -> None:
    assert count_missing(survey(ROWS), Rows()) == 2


def test_rows_are_missing_until_they_are_finished(tmp_path: Path) -> None:
    do([Block(0, (example(3),))], tmp_path)
    assert count_missing(survey(ROWS), read_logs(tmp_path)) == 1
