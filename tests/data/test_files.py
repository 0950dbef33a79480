"""Every kind of data file: its values, damage by its line, columns of tables that do no harm where they are not read,
and limits on what is read."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune import user_files
from codetune.data import files
from codetune.data.files import FileRow, read_file_rows
from codetune.errors import DataError


def values_of(path: Path, columns: Sequence[str] = ()) -> list[FileRow]:
    return list(read_file_rows(path, path.name, lambda names: [name for name in names if name in columns]))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=6)),
    chunk=st.integers(1, 9),
)
def test_an_array_is_read_alike_whatever_the_size_of_the_window(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(values, ensure_ascii=False, indent=0), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        assert [row.value for row in values_of(path)] == values


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"problem": "x", "solution": "y"}\n{"pro', r"a.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"problem": "x", "solution": "y"}\n{"problem": "\xff"}', r"a.jsonl:2 is not JSON"),
        ("a.json", b'[\n{"problem": "x", "solution": "y"},\n{"problem": "x y', r"a.json:3: the file breaks off inside"),
        ("a.json", b'[\n{"problem": "x", "solution": "y"},\n', r"a.json:2: the file breaks off inside"),
        ("a.json", b'[\n{"problem": "x", "solution": "y"}\n', r"a.json:2: the array breaks off after row 1"),
        ("a.json", b'[\n{"problem": "x", "solution": "y"}\n{}]', r"a.json:3: '\{' follows row 1"),
        (
            "a.json",
            b'[\n{"problem": "x", "solution": "y"},\n{"problem" 3, "solution": "a long"}]',
            r"a.json:3: not JSON",
        ),
        ("a.json", b'[\n{"problem": "x", "solution": "y"},\n\n"\xff"]', r"a.json:4: not UTF-8"),
        ("a.json", b'[{"problem": "x", "solution": "y"}]\n\n x', r"a.json:3: something follows the array, at column 2"),
        ("a.json", b'[\n{"problem": "x"},\n]\n', r"a.json:3: a comma follows row 1, which is the last, at column 1"),
        ("a.json", b'[{"problem": "x"}, ]', r"a.json:1: a comma follows row 1, which is the last, at column 20"),
        ("a.jsonl", '{"problem": "x"}'.encode("utf-16"), "a.jsonl:1 is not JSON in UTF-8 .*Save the file as UTF-8"),
        ("a.json", b'[\n{"problem": "x",}]', r"a.json:2: not JSON: .*, at column 17"),
        ("a.json", b'[\n{"problem": tru}]', r"a.json:2: not JSON: Expecting value, at column 13"),
        ("a.json", b'[\n{"problem": tru', r"a.json:2: the file breaks off inside a row"),
        ("a.json", b'[\n{"problem": "x\\u12', r"a.json:2: the file breaks off inside a row"),
        ("a.jsonl", b'{}\n{"problem": "x",}\n', r"a.jsonl:2 is not JSON \(.*, at column 17\)"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"problem": "x", "solution": "y"}\n' * 50, mtime=0)[:40],
            r"cannot be read to its end",
        ),
        ("a.json.gz", b"plain", r"cannot be read to its end"),
        ("a.parquet", b"PAR1 is not enough", r"cannot be read after row 0"),
    ],
)
def test_a_damaged_file_is_an_error_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        values_of(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}\r\n', {"a": 1}),
        (b'{"a": NaN, "b": 1e999}', "{'a': nan, 'b': inf}"),
        (b'{"a": ' + b"9" * 5000 + b"}", {"a": float("inf")}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b'{"a": [[null]], "b": {}}', {"a": [[None]], "b": {}}),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_odd_json_is_a_value_like_any_other(tmp_path: Path, name: str, content: bytes, value: object) -> None:
    (tmp_path / name).write_bytes(content)
    (row,) = values_of(tmp_path / name)
    assert (str(row.value) if isinstance(value, str) else row.value) == value


@pytest.mark.parametrize(
    ("name", "content", "at"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}', "a.jsonl:2"),
        ("a.json", '[{"a": 1},{"a": 1, "a": 2}]', "a.json:row 2"),
    ],
    ids=["lines", "array"],
)
def test_a_key_that_stands_twice_is_the_fault_of_its_row(tmp_path: Path, name: str, content: str, at: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [(row.at, row.fault) for row in values_of(tmp_path / name)][1] == (at, "a key stands twice")


def write_table(path: Path, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def texts(*values: bytes) -> pyarrow.Array:
    """A column of text, valid or not."""
    return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())


IMPOSSIBLE_DATE = pyarrow.array([2**62, 0, 0], pyarrow.timestamp("ms"))


def test_a_value_in_a_column_that_is_not_read_does_no_harm(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", a=["x", "y", "z"], date=IMPOSSIBLE_DATE, note=texts(b"\xff", b"", b""))
    assert [row.value for row in values_of(path, ["a"])] == [{"a": "x"}, {"a": "y"}, {"a": "z"}]


def test_two_columns_of_one_name_are_an_error_if_they_are_read(tmp_path: Path) -> None:
    path, column = tmp_path / "a.parquet", pyarrow.array(["x"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column] * 3, ["a", "b", "b"]), path)
    assert [row.value for row in values_of(path, ["a"])] == [{"a": "x"}]
    with pytest.raises(DataError, match=r"has more than one column b: .* it has a, b, b"):
        list(read_file_rows(path, path.name, lambda names: names))


def test_a_value_that_cannot_be_read_is_the_fault_of_its_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", a=texts(b"x", b"\xff", b"z"), date=IMPOSSIBLE_DATE)
    assert [(row.at, row.value, row.fault) for row in values_of(path, ["a"])] == [
        ("a.parquet:row 1", {"a": "x"}, ""),
        ("a.parquet:row 2", None, "text is not valid Unicode"),
        ("a.parquet:row 3", {"a": "z"}, ""),
    ]
    assert [row.fault for row in values_of(path, ["date"])] == ["a value cannot be read", "", ""]


def test_the_rows_of_a_table_without_a_column_to_read_have_names_alone(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", a=["x"], b=[IMPOSSIBLE_DATE[0]])
    assert [row.value for row in values_of(path)] == [{"a": None, "b": None}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_row_that_is_too_long_is_an_error_with_its_place(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"a": "x"}, {"a": "y" * 500}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    write_table(tmp_path / "a.parquet", a=[row["a"] for row in rows])
    for module in (user_files, files):
        monkeypatch.setattr(module, "ROW_BYTES", 200)
    monkeypatch.setattr(files, "CHUNK_BYTES", 50)
    with pytest.raises(DataError, match=rf"{name}:(row )?[25] is longer than"):
        values_of(tmp_path / name, ["a"])


def test_a_list_in_an_object_of_one_long_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"a": "x"}] * 50}), encoding="utf-8")
    monkeypatch.setattr(user_files, "ROW_BYTES", 200)
    with pytest.raises(DataError, match=r"a.json:1 is longer .* a list under data: if that holds the rows, write it"):
        values_of(tmp_path / "a.json", ["a"])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_an_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"a": "x" * 1000}
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * 5_000_000))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([row] * 5000).encode()))
    write_table(tmp_path / "a.parquet", a=[row["a"]] * 5000)  # a dictionary of one value
    assert (tmp_path / name).stat().st_size < 50_000
    monkeypatch.setattr(user_files, "UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=rf"{name} has .* bytes and unpacks to more than .* 100 times its size"):
        values_of(tmp_path / name, ["a"])


def test_a_row_of_a_small_table_with_values_without_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nulls = pyarrow.ListArray.from_arrays([0, 100_000], pyarrow.nulls(100_000, pyarrow.int32()))
    pyarrow.parquet.write_table(pyarrow.table({"a": nulls}), tmp_path / "a.parquet")
    assert len(values_of(tmp_path / "a.parquet", ["a"])) == 1
    monkeypatch.setattr(user_files, "UNPACKED_BYTES", 700_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        values_of(tmp_path / "a.parquet", ["a"])


@pytest.mark.parametrize("name", ["lines.jsonl.gz", "array.json.gz", "table.parquet"])
def test_a_small_file_of_rows_without_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, count = tmp_path / name, 20_000  # more than the bytes of each
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(count, pyarrow.string())}), path)
    else:
        path.write_bytes(gzip.compress(b"0\n" * count if "lines" in name else f"[0{',0' * (count - 1)}]".encode()))
    monkeypatch.setattr(files, "ROWS_OF_A_SMALL_FILE", count)
    assert len(values_of(path, ["a"])) == count
    monkeypatch.setattr(files, "ROWS_OF_A_SMALL_FILE", count - 1)
    with pytest.raises(DataError, match=rf"{name} has [0-9,]+ bytes and more than 19,999 rows"):
        values_of(path, ["a"])


def test_a_long_value_that_a_dictionary_repeats_is_read_one_row_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "a.parquet", a=["x" * 5000] * 40)
    batches: list[int] = []
    count = files.UnpackingLimit.count
    monkeypatch.setattr(files.UnpackingLimit, "count", lambda limit, size: batches.append(size) or count(limit, size))
    assert len(values_of(path, ["a"])) == 40
    assert max(batches[1:]) > 5000 * (files.TABLE_BATCH_ROWS - 1)
    batches.clear()
    monkeypatch.setattr(files, "ROW_BYTES", 4000)
    with pytest.raises(DataError, match=r"a\.parquet:row 1 is longer than"):
        values_of(path, ["a"])
    assert max(batches[1:]) < 2 * 5000


def test_many_keys_and_many_blanks_take_no_time_by_their_square(tmp_path: Path) -> None:
    keys = ", ".join(f'"k{number}": 1' for number in range(40_000))
    (tmp_path / "a.json").write_text("[" + " " * 3_000_000 + "{" + keys + ', "k39999": 2}]')
    start = time.process_time()
    assert [row.fault for row in values_of(tmp_path / "a.json")] == ["a key stands twice"]
    assert time.process_time() - start < 5
