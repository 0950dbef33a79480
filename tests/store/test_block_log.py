"""Logs of finished rows: what survives a crash at any byte, and what is read again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.errors import StaleError
from codetune.store.block_log import BlockLog, FinishedRows, LineLog, log_path, open_parts, read_logs, read_objects

Block = list[tuple[str, bytes]]

# Rows may hold anything, also what looks like a header or the end of a block.
CONTENTS = st.one_of(
    st.binary(max_size=12), st.sampled_from([b"\n", b"\n\n", b'{"ids": [], "lengths": [], "crc": 0}\n'])
)
BLOCKS = st.lists(st.lists(CONTENTS, max_size=4), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(BLOCKS, st.data())
def test_a_log_truncated_at_any_byte_keeps_exactly_its_complete_blocks(
    contents: list[list[bytes]], data: st.DataObject
) -> None:
    blocks = numbered(contents)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "0-of-1.log"
        ends = [0, *(append(log, block) for block in blocks)]
        whole = log.read_bytes()
        for size in sorted({*ends, *data.draw(st.lists(st.integers(0, len(whole)), max_size=20))}):
            log.write_bytes(whole[:size])
            kept = [block for block, end in zip(blocks, ends[1:], strict=True) if end <= size]
            assert found(read_logs(log.parent), blocks) == [row for block in kept for row in block]


@settings(max_examples=40, deadline=None)
@given(BLOCKS, st.data())
def test_a_log_is_continued_after_its_last_complete_block(contents: list[list[bytes]], data: st.DataObject) -> None:
    blocks = numbered(contents)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "0-of-1.log"
        ends = [append(log, block) for block in blocks]
        size = data.draw(st.integers(0, ends[-1]))
        os.truncate(log, size)
        kept = [row for block, end in zip(blocks, ends, strict=True) if end <= size for row in block]
        added = [("ffffffffffffffff", b"added")]
        append(log, added)
        assert found(read_logs(log.parent), [*blocks, added]) == [*kept, *added]


def test_every_truncation_of_a_small_log_keeps_its_complete_blocks(tmp_path: Path) -> None:
    log = tmp_path / "0-of-1.log"
    blocks = numbered([[b"a", b""], [b"b\n"]])
    ends = [append(log, block) for block in blocks]
    whole = log.read_bytes()
    for size in range(len(whole) + 1):
        log.write_bytes(whole[:size])
        assert len(read_logs(tmp_path)) == (3 if size == ends[1] else 2 if size >= ends[0] else 0), size


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\xff\xfe{", b"{}\n", b'{"ids": ["0"', b"5\n"])
def test_garbage_after_the_last_complete_block_is_removed(garbage: bytes, tmp_path: Path) -> None:
    log = tmp_path / "0-of-1.log"
    (block,) = numbered([[b"a"]])
    end = append(log, block)
    with log.open("ab") as file:
        file.write(garbage)
    assert found(read_logs(tmp_path), [block]) == block
    with BlockLog(log):
        assert log.stat().st_size == end


@pytest.mark.parametrize(
    "header",
    [
        {"lengths": [1], "crc": 0},
        {"ids": ["xyz"], "lengths": [1], "crc": 0},
        {"ids": ["0000000000000001"], "lengths": ["1"], "crc": 0},
        {"ids": ["0000000000000001"], "lengths": [1, 2], "crc": 0},
        {"ids": ["0000000000000001"], "lengths": [-1], "crc": 0},
        {"ids": 3, "lengths": [1], "crc": 0},
    ],
)
def test_a_line_of_json_that_is_no_block_header_ends_the_log(header: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "0-of-1.log"
    (block,) = numbered([[b"a"]])
    append(log, block)
    with log.open("ab") as file:
        file.write(json.dumps(header).encode() + b"\nx\n")
    assert found(read_logs(tmp_path), [block]) == block


def test_more_logs_are_read_than_may_be_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.store.block_log.MAX_OPEN_FILES", 2)
    for number in range(5):
        append(log_path(tmp_path, (number, 5)), [(f"{number:016x}", b"%d" % number)])
    rows = read_logs(tmp_path)
    for number in (0, 1, 2, 3, 4, 0, 3):
        assert rows.read(f"{number:016x}") == b"%d" % number
    assert len(rows._maps) == 2


def test_a_damaged_row_is_not_finished(tmp_path: Path) -> None:
    log = tmp_path / "0-of-1.log"
    append(log, [("0000000000000001", b"abc")])
    log.write_bytes(log.read_bytes().replace(b"abc", b"abd"))
    assert "0000000000000001" not in read_logs(tmp_path)


@pytest.mark.parametrize("kind", ["BlockLog", "LineLog"])
def test_a_process_killed_at_any_moment_loses_only_what_it_had_not_committed(kind: str, tmp_path: Path) -> None:
    path, count = tmp_path / "0-of-1.log", 0
    program = f"""
import sys
from pathlib import Path
from codetune.store.block_log import BlockLog, LineLog
start, path = int(sys.argv[1]), Path(sys.argv[2])
with {kind}(path) as log:
    for number in range(start, 10**6):
        if {kind!r} == "BlockLog":
            log.append([f"{{number:016x}}"], [str(number).encode() * 2000])
        else:
            log.append({{"number": number, "text": "x" * 2000}})
        print(number, flush=True)
"""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(count), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        committed = [count, *map(int, process.stdout.read().split())]
        process.stdout.close()
        process.wait()
        rows = rows_of(kind, path)
        # Every printed row is there; one more may have been committed and not yet printed.
        assert rows[: committed[-1] + 1] == list(range(committed[-1] + 1))
        assert len(rows) <= committed[-1] + 2
        count = len(rows)


def test_several_logs_are_read_together_and_of_a_row_finished_twice_the_first_counts(tmp_path: Path) -> None:
    # So many that a sort which is not stable would mix them.
    ids = [f"{number:016x}" for number in range(300)]
    append(log_path(tmp_path, (1, 2)), [(row_id, b"second") for row_id in reversed(ids[100:])])
    append(log_path(tmp_path, (0, 2)), [(row_id, b"first") for row_id in ids[:200]])
    rows = read_logs(tmp_path)
    assert len(rows) == 300
    assert [rows.read(row_id) for row_id in ids] == [b"first"] * 200 + [b"second"] * 100


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.binary(max_size=5), max_size=20), st.integers(0, 2**64 - 1))
def test_finished_rows_hold_the_rows_that_were_written_and_no_other(contents: dict[int, bytes], other: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows"
        path.write_bytes(b"".join(contents.values()) + b".")
        ends = accumulate(map(len, contents.values()), initial=0)
        rows_of_file = [
            (f"{row:016x}", start, end - start) for row, (start, end) in zip(contents, pairwise(ends), strict=True)
        ]
        rows = FinishedRows()
        rows.add_file(path, iter(rows_of_file))
        assert {row: rows.read(f"{row:016x}") for row in contents} == contents
        assert (f"{other:016x}" in rows) == (other in contents)
        assert len(rows) == len(contents)


def test_reading_a_row_that_is_not_finished_raises_a_key_error(tmp_path: Path) -> None:
    assert "0000000000000000" not in FinishedRows()
    with pytest.raises(KeyError, match="00000000000000aa"):
        read_logs(tmp_path).read("00000000000000aa")


def test_a_file_can_be_added_after_a_row_was_read(tmp_path: Path) -> None:
    append(log_path(tmp_path, (0, 1)), [("0000000000000001", b"one")])
    rows = read_logs(tmp_path)
    assert "0000000000000002" not in rows
    (tmp_path / "sealed").write_bytes(b"..two")
    rows.add_file(tmp_path / "sealed", iter([("0000000000000002", 2, 3), ("0000000000000001", 0, 2)]))
    assert (rows.read("0000000000000002"), rows.read("0000000000000001")) == (b"two", b"one")


def test_a_finished_row_takes_24_bytes_of_memory_beside_the_index() -> None:
    rows = FinishedRows()
    columns = (rows._ids, rows._offsets, rows._lengths, rows._file_numbers)
    assert sum(column.itemsize for column in columns) == 24


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2), max_size=5), st.data())
def test_a_line_log_truncated_at_any_byte_keeps_exactly_its_complete_lines(
    documents: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        with LineLog(path) as log:
            for document in documents:
                log.append(document)
        whole = path.read_bytes()
        size = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:size])
        kept = documents[: whole[:size].count(b"\n")]
        assert (read_objects(path), path.read_bytes()) == (kept, whole[:size])
        with LineLog(path) as log:
            assert log.found == kept
            log.append({"added": True})
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*kept, {"added": True}]


@pytest.mark.parametrize("refuse_others", [False, True])
def test_logs_are_kept_for_the_settings_that_made_them(refuse_others: bool, tmp_path: Path) -> None:
    parts = tmp_path / "scores.jsonl.parts"
    made = {"score.max_length": 512, "score.prompt": "é {instruction}", "lora": {"r": 8, "modules": ("a", "b")}}
    assert open_parts(parts, made, refuse_others=False) is False
    append(log_path(parts, (0, 1)), [("0000000000000001", b"one")])
    assert open_parts(parts, made, refuse_others=refuse_others) is False
    assert "0000000000000001" in read_logs(parts)


def test_logs_of_other_settings_are_removed_where_no_other_shard_works(tmp_path: Path) -> None:
    parts = tmp_path / "scores.jsonl.parts"
    open_parts(parts, {"a": 1, "b": 2}, refuse_others=False)
    append(log_path(parts, (0, 1)), [("0000000000000001", b"one")])
    assert open_parts(parts, {"a": 1, "b": 3}, refuse_others=False) is True
    assert len(read_logs(parts)) == 0
    assert open_parts(parts, {"a": 1, "b": 3}, refuse_others=True) is False


@pytest.mark.parametrize("other", [{"a": 1, "b": 3}, {"a": 1}, {"a": 1, "b": 2, "c": 0}])
def test_a_shard_with_other_settings_is_refused_and_the_logs_are_kept(other: dict[str, int], tmp_path: Path) -> None:
    parts = tmp_path / "scores.jsonl.parts"
    open_parts(parts, {"a": 1, "b": 2}, refuse_others=True)
    append(log_path(parts, (0, 2)), [("0000000000000001", b"one")])
    with pytest.raises(StaleError, match=r"holds shards made with [bc] .*this one has .*mv \S+ \S+\.old$"):
        open_parts(parts, other, refuse_others=True)
    assert "0000000000000001" in read_logs(parts)


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff", b"[1]", b"null"])
@pytest.mark.parametrize("refuse_others", [False, True])
def test_a_damaged_record_of_settings_is_an_error_that_names_the_fix(
    refuse_others: bool, content: bytes, tmp_path: Path
) -> None:
    parts = tmp_path / "scores.jsonl.parts"
    open_parts(parts, {"a": 1}, refuse_others=False)
    append(log_path(parts, (0, 1)), [("0000000000000001", b"one")])
    (parts / "settings.json").write_bytes(content)
    with pytest.raises(StaleError, match=r"settings.json is damaged \(.*Expected.*mv .*\.parts \S+\.old$"):
        open_parts(parts, {"a": 1}, refuse_others=refuse_others)
    assert len(read_logs(parts)) == 1


def test_logs_without_a_record_of_their_settings_are_removed(tmp_path: Path) -> None:
    parts = tmp_path / "scores.jsonl.parts"
    append(log_path(parts, (0, 1)), [("0000000000000001", b"one")])
    open_parts(parts, {"a": 1}, refuse_others=False)
    assert len(read_logs(parts)) == 0


def numbered(contents: list[list[bytes]]) -> list[Block]:
    """Blocks of rows, each row with an id of its own."""
    count = iter(range(1000))
    return [[(f"{next(count):016x}", row) for row in rows] for rows in contents]


def append(path: Path, block: Sequence[tuple[str, bytes]]) -> int:
    """Appends a block as a process of its own would; returns the size of the log."""
    with BlockLog(path) as log:
        log.append([row_id for row_id, _ in block], [row for _, row in block])
    return path.stat().st_size


def found(rows: FinishedRows, blocks: list[Block]) -> Block:
    return [(row_id, rows.read(row_id)) for block in blocks for row_id, _ in block if row_id in rows]


def rows_of(kind: str, path: Path) -> list[int]:
    """The numbers of the rows that a killed process left, in order; every row has its whole content."""
    if kind == "LineLog":
        with LineLog(path) as log:
            assert all(row["text"] == "x" * 2000 for row in log.found)
            return [row["number"] for row in log.found]
    rows = read_logs(path.parent)
    numbers = sorted(np.unique(np.frombuffer(rows._ids, dtype=np.uint64)).tolist())
    assert all(rows.read(f"{number:016x}") == str(number).encode() * 2000 for number in numbers)
    return numbers
