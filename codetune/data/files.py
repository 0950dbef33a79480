"""One data file -> its rows, streaming: JSON arrays (`.json`), one JSON object a line (`.jsonl`, `.json`), and CSV, all
of them also gzipped; and Parquet. Any value counts as a row; only a damaged file, or one beyond the limits of
`user_files.py`, is an error, with its line. An array is decoded value by value from a window of text, so its size does
not matter. Of a Parquet table only the columns are read that the caller asks for: a value in another one can do no
harm."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from codetune.data.csv_rows import read_csv_rows
from codetune.errors import DataError, first_line
from codetune.user_files import MIB, ROW_BYTES, UnpackingLimit, open_limited, read_lines, too_long

if TYPE_CHECKING:
    import pyarrow

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet")
CHUNK_BYTES = MIB
BYTES_A_VALUE = 8  # of a table in memory: its place in the rows and lists takes 4, its own bytes or their length 4
TABLE_BATCH_ROWS = 16  # few, because a dictionary can repeat a long value in every row
# The decoder can report a value that is cut ("\\u12", "fals") as an error at most this many characters before the end
# of the text that has been read.
CUT_VALUE_CHARACTERS = 16
# What a file that breaks off in a value ends with, from where the decoder finds the fault.
CUT_END = re.compile(r'"(?s:.*)|[\w.+-]*\s*|\\?u?[0-9a-fA-F]{0,4}')
BLANKS = re.compile(r"[ \t\r\n]*")
ROWS_OF_A_SMALL_FILE = 10_000_000  # a larger one has as many as bytes at most; compressed real rows take some hundred
LONGEST_INTEGER = 1000  # digits; Python refuses to convert more than 4300

ColumnChoice = Callable[[Sequence[str]], Sequence[str]]  # the columns of a table -> those to read


@dataclass(frozen=True, slots=True)
class FileRow:
    """One value of a data file, whatever it is, and where it stands."""

    source: str  # the file's name in messages, or the name of a data set on the Hub
    number: int  # of the line, from 1; of the row where a file has no lines
    value: object
    has_lines: bool = False
    fault: str = ""  # why there is no value

    @property
    def at_file(self) -> str:  # `at` without the number
        return f"{self.source}:" if self.has_lines else f"{self.source}:row "

    @property
    def at(self) -> str:
        return f"{self.at_file}{self.number}"


def read_file_rows(path: Path, source: str, choose: ColumnChoice) -> Iterator[FileRow]:
    """The values of the file in order; blank lines are skipped. `choose` names the columns to read of a table.

    Raises DataError, with the line, for a damaged file, for a row that is too long, and for more rows than a file of
    its size can hold."""
    most = max(ROWS_OF_A_SMALL_FILE, path.stat().st_size if path.is_file() else 0)
    for count, row in enumerate(_file_rows(path, source, choose), start=1):
        if count > most:
            raise DataError(
                f"{source} has {path.stat().st_size:,} bytes and more than {most:,} rows. Expected: a byte or more for "
                "each row. If the same row over and over is what you mean, unpack the file first."
            )
        yield row


def _file_rows(path: Path, source: str, choose: ColumnChoice) -> Iterator[FileRow]:
    if data_suffix(path) == ".parquet":
        yield from _parquet_rows(path, source, choose)
        return
    is_gzip = path.name.lower().endswith(".gz")
    try:
        if data_suffix(path) in (".csv", ".csv.gz"):
            with open_limited(path, source, is_gzip) as stream:
                for number, value in read_csv_rows(stream, source):
                    fault = value if isinstance(value, str) else ""
                    yield FileRow(source, number, None if fault else value, has_lines=True, fault=fault)
            return
        with open_limited(path, source, is_gzip) as stream:
            is_array = data_suffix(path) in (".json", ".json.gz") and _first_byte(stream) == b"["
        with open_limited(path, source, is_gzip) as stream:
            yield from _array_rows(stream, source) if is_array else _line_rows(stream, source)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source} cannot be read to its end ({error}). Expected: a whole file, compressed where it is named .gz. "
            "Copy or download it again."
        ) from error


def data_suffix(path: Path) -> str | None:
    """The suffix that says how a data file is read; None for any other file.

    >>> data_suffix(Path("evol.v2.jsonl.gz")), data_suffix(Path("notes.txt"))
    ('.jsonl.gz', None)
    """
    return next((suffix for suffix in reversed(DATA_SUFFIXES) if path.name.lower().endswith(suffix)), None)


def table_rows(batch: pyarrow.RecordBatch | pyarrow.Table, source: str, before: int) -> Iterator[FileRow]:
    """The rows of a part of a table, numbered on from `before`; one with a value that cannot be read has a `fault`.
    Raises DataError for a row that is too long."""
    together = _python_values(batch) if batch.nbytes <= ROW_BYTES else None
    for index in range(batch.num_rows):
        number = before + index + 1
        if isinstance(together, list):
            yield FileRow(source, number, together[index])
            continue
        row = batch.slice(index, 1)
        if row.nbytes > ROW_BYTES:
            raise too_long(f"{source}:row {number}")
        value = _python_values(row)
        if isinstance(value, str):
            yield FileRow(source, number, None, fault=value)
        else:
            yield FileRow(source, number, value[0])


def unread_rows(names: Sequence[str], count: int, source: str, before: int = 0) -> Iterator[FileRow]:
    """The rows of a table of no known format: the names of their columns, and no values."""
    return (FileRow(source, before + number + 1, dict.fromkeys(names)) for number in range(count))


def chosen_columns(names: Sequence[str], choose: ColumnChoice, source: str) -> list[str]:
    """The columns of a table that are read. Raises DataError where two of them have one name."""
    columns = list(choose(names))
    if repeated := sorted({name for name in columns if names.count(name) > 1}):
        raise DataError(
            f"{source} has more than one column {' and '.join(repeated)}: which of them counts, nobody can say. "
            f"Expected: one column of each name; it has {', '.join(names)}. Rename or drop the others."
        )
    return columns


def _python_values(batch: pyarrow.RecordBatch | pyarrow.Table) -> list[object] | str:
    """The rows as dictionaries, or why one of them is none: Arrow checks no text and no date while it reads."""
    import pyarrow

    try:
        values: list[object] = batch.to_pylist()
    except UnicodeDecodeError:
        return "text is not valid Unicode"
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return "a value cannot be read"
    return values


def _parquet_rows(path: Path, source: str, choose: ColumnChoice) -> Iterator[FileRow]:
    import pyarrow.parquet  # here, because it takes a quarter of a second that JSON files need not spend

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            columns = chosen_columns(names, choose, source)
            if not columns:
                yield from unread_rows(names, table.metadata.num_rows, source)
                return
            chunks = _column_chunks(table.metadata, columns)
            UnpackingLimit(path, source).count(sum(map(_bytes_in_memory, chunks)))
            limit = UnpackingLimit(path, source)
            for batch in table.iter_batches(_rows_at_once(chunks), columns=columns):
                limit.count(batch.nbytes)
                yield from table_rows(batch, source, number)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise DataError(
            f"{source} cannot be read after row {number} ({first_line(error)}). Expected: a whole Parquet file. Copy "
            "it again."
        ) from error


def _column_chunks(
    metadata: pyarrow.parquet.FileMetaData, columns: Sequence[str]
) -> list[pyarrow.parquet.ColumnChunkMetaData]:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]


def _bytes_in_memory(chunk: pyarrow.parquet.ColumnChunkMetaData) -> int:
    """What reading it takes at least. Values that are all null, or all in one list, take no bytes in the file."""
    return max(int(chunk.total_uncompressed_size), BYTES_A_VALUE * int(chunk.num_values))


def _rows_at_once(chunks: Sequence[pyarrow.parquet.ColumnChunkMetaData]) -> int:
    """One where a dictionary may hold a long value, which would stand in memory once for each row. Its size is an
    estimate; writers end a dictionary at 1 MiB."""
    for chunk in chunks:
        if chunk.has_dictionary_page:
            packed = chunk.data_page_offset - chunk.dictionary_page_offset
            if packed * chunk.total_uncompressed_size > ROW_BYTES // 4 * chunk.total_compressed_size:
                return 1
    return TABLE_BATCH_ROWS


def _first_byte(stream: IO[bytes]) -> bytes:
    while chunk := stream.read(4096):
        if text := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
            return text[:1]
    return b""


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """Stands for a JSON object that has a key twice: which value counts, nobody can say."""

    key: str


def _object(pairs: Sequence[tuple[str, object]]) -> object:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    counts = Counter(name for name, _ in pairs)
    return RepeatedKey(next(name for name, _ in pairs if counts[name] > 1))


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _line_rows(stream: IO[bytes], source: str) -> Iterator[FileRow]:
    for number, line in enumerate(read_lines(stream, source), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            value = _JSON.decode(line.decode("utf-8"))
        except json.JSONDecodeError as error:
            if line.strip() in (b"{", b"[") and number == 1:
                raise _over_several_lines(source) from error
            raise _not_json(f"{source}:{number}", f"{error.msg}, at column {error.colno}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source}:{number} is not JSON in UTF-8 ({error.reason}). Save the file as UTF-8, or fix the line."
            ) from error
        except (ValueError, RecursionError) as error:
            raise _not_json(f"{source}:{number}", str(error)) from error
        yield _file_row(source, number, value, has_lines=True)


def _not_json(position: str, fault: str) -> DataError:
    return DataError(
        f"{position} is not JSON ({fault}). Expected: one object a line, in UTF-8, or an array of objects in a .json "
        "file. Fix or delete the line."
    )


def _over_several_lines(source: str) -> DataError:
    return DataError(
        f"{source}:1 begins a value that takes several lines. Expected: an array of objects in a file that is named "
        ".json, or one object a line. Rename a file that is an array; where the rows are a list inside of an object, "
        "write that list into a file of its own."
    )


def _file_row(source: str, number: int, value: object, has_lines: bool) -> FileRow:
    if isinstance(value, RepeatedKey):
        return FileRow(source, number, None, has_lines, "a key stands twice")
    return FileRow(source, number, value, has_lines)


def _array_rows(stream: IO[bytes], source: str) -> Iterator[FileRow]:
    window = _JsonWindow(stream, source)
    window.take()  # the opening bracket
    number, separator = 0, "," if window.peek() != "]" else window.take()
    while separator == ",":
        if number and window.peek() == "]":
            window.refuse(f"a comma follows row {number}, which is the last")
        number += 1
        yield _file_row(source, number, window.value(), has_lines=False)
        separator = window.take()
    if separator != "]":
        window.refuse(
            f"{separator!r} follows row {number}" if separator else f"the array breaks off after row {number}"
        )
    if window.peek():
        window.refuse("something follows the array")


class _JsonWindow:
    """A part of the text of a JSON file, extended as it is decoded: `_text[_position:]` comes next."""

    def __init__(self, stream: IO[bytes], source: str) -> None:
        self._stream, self._source = stream, source
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._position = "", 0
        self._line, self._column = 1, 1  # of the first character of `_text`
        self._is_whole = False  # whether the stream has been read to its end

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file. Does not move beyond it."""
        while True:
            self._position = BLANKS.match(self._text, self._position).end()  # type: ignore[union-attr]  # always fits
            character = self._text[self._position : self._position + 1]
            if character or not self._extend():
                return character

    def take(self) -> str:
        """As `peek`, and moves beyond the character."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self) -> object:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos + CUT_VALUE_CHARACTERS > len(self._text)
                if is_cut and self._extend():
                    continue
                if is_cut and CUT_END.fullmatch(self._text, error.pos):
                    self._position = len(self._text)
                    self.refuse("the file breaks off inside a row")
                self._position = error.pos
                self.refuse(f"not JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.refuse(f"not JSON that can be read: {error}")
            # A value that reaches the end of the window may be the beginning of a longer number.
            if end < len(self._text) or not self._extend():
                self._position = end
                return value

    def refuse(self, fault: str) -> NoReturn:
        passed = self._text[: self._position]
        if len(passed) == len(self._text):
            passed = passed.rstrip()  # a file that ends in a line feed breaks off on the line before it
        line, column = self._place_after(passed)
        raise DataError(
            f"{self._source}:{line}: {fault}, at column {column}. Expected: an array of objects, whole. Fix the file "
            "there, or copy it again."
        )

    def _place_after(self, passed: str) -> tuple[int, int]:
        """The line and the column of the character after `passed`, with which `_text` begins."""
        feeds, last = passed.count("\n"), passed.rpartition("\n")[2]
        return self._line + feeds, (1 if feeds else self._column) + len(last)

    def _extend(self) -> bool:
        """Drops the text that has been decoded and reads on; False at the end of the file."""
        if self._is_whole:
            return False
        # At least as much again as is held, so that the decoding of a long value is repeated a few times only.
        held = len(self._text) - self._position
        if held > ROW_BYTES:
            raise too_long(f"{self._source}:{self._place_after(self._text[: self._position])[0]}")
        chunk = self._stream.read(max(CHUNK_BYTES, held))
        self._is_whole = not chunk
        if chunk:
            self._line, self._column = self._place_after(self._text[: self._position])
            self._text, self._position = self._text[self._position :], 0
        try:
            self._text += self._decoder.decode(chunk, final=self._is_whole)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode("utf-8")
            self._position = len(self._text)
            self.refuse("not UTF-8")
        return not self._is_whole
