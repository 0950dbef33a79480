from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from codetune.benchmark.rows import read_rows
from codetune.errors import DataError


def test_rows_come_with_their_places_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    # U+2028 ends a line for str.splitlines, and stands in JSON text as it is.
    path.write_text('{"a": 1}\r\n\n{"b": "\u2028"}', encoding="utf-8")
    assert list(read_rows(path, "rows")) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"b": "\u2028"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "rows.jsonl:2: not JSON"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2: list where a JSON object belongs"),
        (b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl:1: not JSON .Exceeds the limit"),
        (b'{"a": "\xff"}', "cannot be read .*utf-8"),
        (gzip.compress(b'{"a": 1}' * 1000, mtime=0)[:40], "cannot be read .*ended"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path, "rows"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\). Expected: rows"):
        list(read_rows(tmp_path / "rows.jsonl", "rows"))
