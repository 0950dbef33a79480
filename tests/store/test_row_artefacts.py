"""The row artefacts as files: in data-set order, byte for byte what the stages made, and read back as it was."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codetune.data.ids import IdIndex
from codetune.errors import StaleError
from codetune.records import Example, Message, Refusal, Score, SelectedRows
from codetune.store.block_log import BlockLog, FinishedRows, log_path, read_logs
from codetune.store.examples import write_examples
from codetune.store.files import replacing, write_text
from codetune.store.row_artefacts import (
    embedding_bytes,
    read_embeddings,
    read_outcomes,
    read_scores,
    read_selection,
    score_line,
    sealed_embeddings,
    sealed_scores,
    write_embeddings,
    write_scores,
    write_selection,
)
from codetune.store.run_directory import Run

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

DUPLICATE = Refusal(None, "duplicate of a.jsonl:1", "a.jsonl:2")
EMPTY = Refusal("00000000000000ee", "empty answer", "a.jsonl:3")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_scores_are_written_in_data_set_order(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, EMPTY, example(1), example(2)])
    scores = [score(1), Refusal(example(2).id, "non-finite likelihood", "a.jsonl:5"), score(3)]
    counts = write_scores(run, done(run, [(row.id, score_line(row)) for row in scores]), ())
    assert [json.loads(line) for line in run.scores.read_text(encoding="utf-8").splitlines()] == [
        {"id": "0000000000000003", "ifd": 0.3, "nll_conditional": 0.1, "nll_unconditional": 0.7}
        | {"answer_tokens": 4, "truncated": False},
        {"id": None, "at": "a.jsonl:2", "refused": "duplicate of a.jsonl:1"},
        {"id": "00000000000000ee", "refused": "empty answer"},
        {"id": "0000000000000001", "ifd": 0.1, "nll_conditional": 0.1, "nll_unconditional": 0.7}
        | {"answer_tokens": 4, "truncated": False},
        {"id": "0000000000000002", "refused": "non-finite likelihood"},
    ]
    assert counts == (2, {"duplicate": 1, "empty answer": 1, "non-finite likelihood": 1}, 0)


def test_scores_are_read_as_they_were_made(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, EMPTY])
    write_scores(run, done(run, [(example(3).id, score_line(score(3)))]), ())
    assert list(read_scores(run)) == [
        score(3),
        DUPLICATE,
        Refusal(EMPTY.id, EMPTY.reason, f"{run.scores}:3"),
    ]


def test_a_usable_row_that_is_not_finished_is_an_error(run: Run) -> None:
    write_examples(run, [example(1)])
    with pytest.raises(KeyError):
        write_scores(run, FinishedRows(), ())
    assert not run.scores.exists()


def test_sealed_scores_are_finished_rows_with_the_same_bytes(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, EMPTY, example(1)])
    write_scores(run, done(run, [(row.id, score_line(row)) for row in (score(1), score(3))]), ())
    again = FinishedRows()
    again.add_file(run.scores, sealed_scores(run, lambda row: True))
    assert [again.read(example(number).id) for number in (1, 3)] == [score_line(score(1)), score_line(score(3))]
    assert len(again) == 3  # the refused row that has an id is done as well


def test_scores_written_from_sealed_scores_have_the_same_bytes(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, EMPTY, example(1)])
    write_scores(run, done(run, [(row.id, score_line(row)) for row in (score(1), score(3))]), ())
    before = run.scores.read_bytes()
    again = FinishedRows()
    again.add_file(run.scores, sealed_scores(run, lambda row: True))
    write_scores(run, again, ())
    assert run.scores.read_bytes() == before


def test_embeddings_are_written_in_data_set_order_with_their_ids(run: Run) -> None:
    vectors = {number: vector(number) for number in (1, 2, 3)}
    rows = [example(3), EMPTY, example(1), DUPLICATE, example(2)]
    count, refused, cut = embed(run, rows, vectors, cut={1})
    assert (count, refused, cut.tolist()) == (3, {"empty answer": 1, "duplicate": 1}, [False, True, False])
    found = read_embeddings(run)
    assert found.ids.tolist() == [3, 1, 2]
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, np.stack([vectors[3], vectors[1], vectors[2]]))


def test_embeddings_have_the_bytes_that_numpy_writes(run: Run, tmp_path: Path) -> None:
    embed(run, [example(1), example(2)], {1: vector(1), 2: vector(2)}, cut=set())
    np.save(tmp_path / "theirs.npy", np.stack([vector(1), vector(2)]))
    assert run.embeddings.read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_sealed_embeddings_are_finished_rows_and_keep_their_cut_marks(run: Run) -> None:
    embed(run, [example(1), example(2)], {1: vector(1), 2: vector(2)}, cut={2})
    before = run.embeddings.read_bytes()
    again = FinishedRows()
    again.add_file(run.embeddings, sealed_embeddings(run))
    assert again.read(example(2).id) == vector(2).tobytes()
    count, _, cut = write_embeddings(run, again, index(2))
    assert (count, cut.tolist()) == (2, [False, True])
    assert run.embeddings.read_bytes() == before


def test_rows_added_later_are_merged_with_those_of_the_last_artefact(run: Run) -> None:
    embed(run, [example(1)], {1: vector(1)}, cut={1})
    old = run.embeddings.rename(run.directory / "old.npy")
    rows = done(run, [(example(2).id, embedding_bytes(vector(2), True))])
    start = old.stat().st_size - 12
    rows.add_file(old, iter([(example(1).id, start, 12)]))
    write_examples(run, [example(2), example(1)])
    _, _, cut = write_embeddings(run, rows, index(1))
    assert cut.tolist() == [True, True]
    assert np.array_equal(read_embeddings(run).vectors, np.stack([vector(2), vector(1)]))


def test_embeddings_of_no_rows_can_be_read(run: Run) -> None:
    assert embed(run, [EMPTY], {}, cut=set())[0] == 0
    found = read_embeddings(run)
    assert (list(found.ids), len(found.vectors), list(sealed_embeddings(run))) == ([], 0, [])


def test_a_selection_is_written_in_the_order_of_its_picks(run: Run) -> None:
    write_examples(run, [*map(example, range(4)), EMPTY])
    write_picks(run, picked([2, 0], [0.5, 0.75], [1, 0]))
    assert run.selection.read_text(encoding="utf-8").splitlines() == [
        '{"id": "0000000000000002", "messages": [{"role": "user", "content": "question 2 é"}, '
        '{"role": "assistant", "content": "answer 2"}], "ifd": 0.5, "cluster": 1, "why": "pick 0"}',
        '{"id": "0000000000000000", "messages": [{"role": "user", "content": "question 0 é"}, '
        '{"role": "assistant", "content": "answer 0"}], "ifd": 0.75, "cluster": 0, "why": "pick 1"}',
    ]


@pytest.mark.parametrize(
    ("ifd", "cluster", "keys"),
    [
        (None, None, ["id", "messages", "why"]),
        ([0.0], None, ["id", "messages", "ifd", "why"]),
        (None, [0], ["id", "messages", "cluster", "why"]),
    ],
)
def test_a_value_that_a_strategy_does_not_know_is_absent_and_a_zero_is_not(
    ifd: list[float] | None, cluster: list[int] | None, keys: list[str], run: Run
) -> None:
    write_examples(run, [example(0)])
    write_picks(run, picked([0], ifd, cluster))
    assert list(json.loads(run.selection.read_text(encoding="utf-8"))) == keys


def test_a_selection_is_read_as_examples(run: Run) -> None:
    write_examples(run, [example(0), example(1)])
    write_picks(run, picked([1]))
    assert list(read_selection(run.selection)) == [
        Example(example(1).id, example(1).messages, f"{run.selection}:1", str(run.selection)),
    ]


def test_a_long_selection_is_complete(run: Run) -> None:
    count = 2000
    write_examples(run, map(example, range(count)))
    write_picks(run, picked(list(reversed(range(count)))))
    assert [row.id for row in read_selection(run.selection)] == [example(n).id for n in reversed(range(count))]
    assert {path.name for path in run.directory.iterdir()} == {"examples.jsonl", "selection.jsonl"}


@pytest.mark.parametrize("content", [None, "{", "[]\n", '{"id": null}\n'])
def test_rows_not_taken_whose_file_is_damaged_are_told_with_the_remedy(content: str | None, run: Run) -> None:
    write_text(run.selection, "")
    if content is not None:
        write_text(run.excluded, content)
    with pytest.raises(StaleError, match=r"excluded\.jsonl is damaged .*: mv .*seal\.old && codetune run --to select$"):
        list(read_outcomes(run))


def test_a_selection_is_streamed(run: Run) -> None:
    count, length = 8000, 2000

    def examples() -> Iterator[Example]:
        for number in range(count):
            yield Example(f"{number:016x}", (Message("user", "q"), Message("assistant", "a" * length)), "a.jsonl:1")

    write_examples(run, examples())
    picks = picked(list(reversed(range(count))))
    tracemalloc.start()
    write_picks(run, picks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * 200 < run.selection.stat().st_size / 8


def test_a_leftover_of_a_killed_selection_is_not_used(run: Run) -> None:
    write_examples(run, [example(0)])
    with contextlib.suppress(ZeroDivisionError), replacing(run.selection) as temporary:
        raise ZeroDivisionError
    temporary.write_bytes(b"half a selection of other settings")
    write_picks(run, picked([0]))
    assert next(read_selection(run.selection)).messages == example(0).messages


def test_a_failed_selection_leaves_the_old_one(run: Run) -> None:
    write_examples(run, [example(0)])
    write_picks(run, picked([0]))
    before = run.selection.read_bytes()
    with pytest.raises(KeyError, match=example(1).id):
        write_picks(run, picked([1]))
    assert run.selection.read_bytes() == before


def write_picks(run: Run, picks: SelectedRows) -> None:
    write_selection(run, picks, (f"pick {number}" for number in range(len(picks.ids))))


def example(number: int) -> Example:
    messages = (Message("user", f"question {number} é"), Message("assistant", f"answer {number}"))
    return Example(f"{number:016x}", messages, f"a.jsonl:{number}")


def score(number: int) -> Score:
    return Score(
        id=example(number).id,
        ifd=number / 10,
        nll_conditional=0.1,
        nll_unconditional=0.7,
        answer_tokens=4,
        truncated=False,
    )


def vector(number: int) -> Vector:
    return np.array([number, 1 / 3, -0.0], dtype=np.float32)


def done(run: Run, rows: list[tuple[str, bytes]]) -> FinishedRows:
    """FinishedRows as two shards leave them behind."""
    directory = run.directory / "parts"
    for index in range(2):
        with BlockLog(log_path(directory, (index, 2))) as log:
            log.append([row_id for row_id, _ in rows[index::2]], [row for _, row in rows[index::2]])
    return read_logs(directory)


def embed(
    run: Run,
    rows: list[Example | Refusal],
    vectors: dict[int, np.ndarray[tuple[int], np.dtype[np.float32]]],
    cut: set[int],
) -> tuple[int, Counter[str], NDArray[np.bool_]]:
    finished = [(example(number).id, embedding_bytes(made, number in cut)) for number, made in vectors.items()]
    write_examples(run, rows)
    return write_embeddings(run, done(run, finished), index())


def picked(numbers: list[int], ifd: list[float] | None = None, cluster: list[int] | None = None) -> SelectedRows:
    return SelectedRows(
        np.array(numbers, dtype=np.uint64),
        None if ifd is None else np.array(ifd),
        None,
        None if cluster is None else np.array(cluster, dtype=np.int32),
    )


def index(*numbers: int) -> IdIndex:
    return IdIndex(np.array(numbers, dtype=np.uint64))
