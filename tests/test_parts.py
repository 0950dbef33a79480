"""Finished rows: found again after any end of the process that wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codetune.errors import StaleError
from codetune.parts import BlockLog, LineLog, Rows, log_path, open_parts, read_logs

Rowset = Mapping[str, bytes]

identifiers = st.integers(0, 2**64 - 1).map("{:016x}".format)
# Rows with the bytes that mean something to the log itself: line ends, braces, nothing at all.
contents = st.one_of(st.binary(max_size=12), st.sampled_from([b"", b"\n", b'{"ids": []}\n', b"\x00" * 3]))
blocks_of_rows = st.lists(st.dictionaries(identifiers, contents, max_size=3), max_size=4)
documents = st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.text(max_size=5), st.integers()), max_size=3)


def write_blocks(path: Path, blocks: Sequence[Rowset]) -> list[int]:
    """Appends the blocks; the file's size before and after each."""
    sizes = [path.stat().st_size if path.exists() else 0]
    for block in blocks:
        with BlockLog(path) as log:
            log.append(list(block), list(block.values()))
        sizes.append(path.stat().st_size)
    return sizes


def content(rows: Rows, wanted: Sequence[str]) -> dict[str, bytes]:
    return {row_id: rows.read(row_id) for row_id in wanted if row_id in rows}


def first_of_each(blocks: Sequence[Rowset]) -> dict[str, bytes]:
    """What must be found: of a row done twice the first stands."""
    return {row_id: row for block in reversed(blocks) for row_id, row in block.items()}


@settings(max_examples=40)
@given(blocks_of_rows)
def test_every_row_of_every_block_is_found_again(blocks: Sequence[Rowset]) -> None:
    with TemporaryDirectory() as directory:
        write_blocks(Path(directory) / "0-of-1.log", blocks)
        expected = first_of_each(blocks)
        rows = read_logs(Path(directory))
        assert content(rows, list(expected)) == expected
        assert len(rows) == len(expected)


@settings(max_examples=40)
@given(blocks_of_rows, st.data())
def test_a_log_cut_anywhere_keeps_exactly_the_whole_blocks(blocks: Sequence[Rowset], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "0-of-1.log"
        with BlockLog(path) as log:
            ends = []
            for block in blocks:
                log.append(list(block), list(block.values()))
                ends.append(path.stat().st_size)
        cut = data.draw(st.integers(0, path.stat().st_size))
        path.write_bytes(path.read_bytes()[:cut])
        whole = first_of_each([block for block, end in zip(blocks, ends, strict=True) if end <= cut])
        found = read_logs(Path(directory))
        assert content(found, [row_id for block in blocks for row_id in block]) == whole
        assert len(found) == len(whole)


@settings(max_examples=40)
@given(blocks_of_rows, blocks_of_rows, st.data())
def test_appending_goes_on_after_a_cut(blocks: Sequence[Rowset], more: Sequence[Rowset], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "0-of-1.log"
        with BlockLog(path) as log:
            ends = []
            for block in blocks:
                log.append(list(block), list(block.values()))
                ends.append(path.stat().st_size)
        cut = data.draw(st.integers(0, path.stat().st_size))
        path.write_bytes(path.read_bytes()[:cut])
        write_blocks(path, more)
        survivors = [block for block, end in zip(blocks, ends, strict=True) if end <= cut]
        expected = first_of_each([*survivors, *more])
        found = read_logs(Path(directory))
        assert content(found, list(expected)) == expected
        assert len(found) == len(expected)


def test_a_damaged_byte_ends_the_log_before_its_block(tmp_path: Path) -> None:
    path = tmp_path / "0-of-1.log"
    write_blocks(path, [{"0a": b"first"}, {"0b": b"second"}, {"0c": b"third"}])
    path.write_bytes(path.read_bytes().replace(b"second", b"secund"))
    rows = read_logs(tmp_path)
    assert ("0a" in rows, "0b" in rows, "0c" in rows) == (True, False, False)


def test_a_hole_that_a_crash_of_the_machine_leaves_is_no_block(tmp_path: Path) -> None:
    path = tmp_path / "0-of-1.log"
    write_blocks(path, [{"0a": b"first"}])
    path.write_bytes(path.read_bytes() + b"\x00" * 4096)
    write_blocks(path, [{"0b": b"second"}])
    assert content(read_logs(tmp_path), ["0a", "0b"]) == {"0a": b"first", "0b": b"second"}


def test_a_row_done_by_two_shards_stands_once(tmp_path: Path) -> None:
    for shard in ((0, 1), (1, 2)):
        with BlockLog(log_path(tmp_path, shard)) as log:
            log.append(["0a"], [f"by {shard[1]}".encode()])
    rows = read_logs(tmp_path)
    assert (len(rows), rows.read("0a")) == (1, b"by 1")


def test_rows_of_the_last_artefact_stand_behind_those_of_the_logs(tmp_path: Path) -> None:
    write_blocks(tmp_path / "0-of-1.log", [{"0a": b"new"}])
    rows = read_logs(tmp_path)
    artefact = tmp_path / "scores.jsonl"
    artefact.write_bytes(b"old\nkept\n")
    rows.add_file(artefact, iter([("0a", 0, 3), ("0b", 4, 4)]))
    assert content(rows, ["0a", "0b"]) == {"0a": b"new", "0b": b"kept"}


def test_a_file_added_after_a_search_is_searched_as_well(tmp_path: Path) -> None:
    write_blocks(tmp_path / "0-of-1.log", [{"0b": b"b"}])
    rows = read_logs(tmp_path)
    assert "0a" not in rows
    (tmp_path / "more").write_bytes(b"a")
    rows.add_file(tmp_path / "more", iter([("0a", 0, 1)]))
    assert rows.read("0a") == b"a"


def test_a_row_that_is_not_done_is_a_key_error(tmp_path: Path) -> None:
    write_blocks(tmp_path / "0-of-1.log", [{"0a": b"a"}])
    with pytest.raises(KeyError, match="ff"):
        read_logs(tmp_path).read("ff")


def test_where_nothing_is_done_nothing_is_found(tmp_path: Path) -> None:
    rows = read_logs(tmp_path / "missing")
    assert (len(rows), "0a" in rows) == (0, False)


def test_the_smallest_and_the_largest_id_are_found(tmp_path: Path) -> None:
    ends = {"0" * 16: b"least", "f" * 16: b"most"}
    write_blocks(tmp_path / "0-of-1.log", [ends])
    assert content(read_logs(tmp_path), list(ends)) == ends


@settings(max_examples=60)
@given(st.lists(documents, max_size=4), st.lists(documents, max_size=2), st.data())
@example([{}], [{"a": "b"}], None)
def test_a_log_of_lines_cut_anywhere_keeps_the_whole_lines_and_goes_on(
    before: list[dict[str, Any]], after: list[dict[str, Any]], data: st.DataObject | None
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "some" / "verdicts.log"
        ends = []
        with LineLog(path) as log:
            for document in before:
                log.append(document)
                ends.append(path.stat().st_size)
        size = path.stat().st_size
        cut = size if data is None else data.draw(st.integers(0, size))
        path.write_bytes(path.read_bytes()[:cut])
        whole = [document for document, end in zip(before, ends, strict=True) if end <= cut]
        with LineLog(path) as log:
            assert log.found == whole
            for document in after:
                log.append(document)
        with LineLog(path) as log:
            assert log.found == whole + after


def test_a_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with LineLog(tmp_path / "log") as log:
        log.append({"task_id": "T/0"})
        assert (tmp_path / "log").read_text(encoding="utf-8") == '{"task_id": "T/0"}\n'


def test_parts_of_the_same_settings_are_kept(tmp_path: Path) -> None:
    directory, wanted = tmp_path / "scores.parts", {"score.max_length": 8, "k": (1, 2), "model (digest)": "ab"}
    assert open_parts(directory, wanted, refuse_others=False) is False
    (directory / "0-of-1.log").write_bytes(b"work")
    assert open_parts(directory, wanted, refuse_others=False) is False
    assert open_parts(directory, wanted, refuse_others=True) is False
    assert (directory / "0-of-1.log").read_bytes() == b"work"


@pytest.mark.parametrize("wanted", [{"score.max_length": 9}, {}, {"score.max_length": 8, "seed": 1}])
def test_parts_of_other_settings_are_removed(tmp_path: Path, wanted: dict[str, Any]) -> None:
    directory = tmp_path / "scores.parts"
    open_parts(directory, {"score.max_length": 8}, refuse_others=False)
    (directory / "0-of-1.log").write_bytes(b"work")
    assert open_parts(directory, wanted, refuse_others=False) is True
    assert [path.name for path in directory.iterdir()] == ["settings.json"]
    assert json.loads((directory / "settings.json").read_text(encoding="utf-8")) == wanted


def test_parts_that_other_shards_may_be_at_work_on_are_refused_not_removed(tmp_path: Path) -> None:
    directory = tmp_path / "scores.parts"
    open_parts(directory, {"score.max_length": 8}, refuse_others=True)
    (directory / "0-of-2.log").write_bytes(b"work")
    with pytest.raises(StaleError, match=r"score\.max_length 8, this one has 9.*rm -r .*scores\.parts"):
        open_parts(directory, {"score.max_length": 9}, refuse_others=True)
    assert (directory / "0-of-2.log").read_bytes() == b"work"


def test_parts_without_their_settings_are_of_nobody_knows_what(tmp_path: Path) -> None:
    directory = tmp_path / "scores.parts"
    write_blocks(directory / "0-of-1.log", [{"0a": b"work"}])
    assert open_parts(directory, {"seed": 1}, refuse_others=False) is False
    assert len(read_logs(directory)) == 0
