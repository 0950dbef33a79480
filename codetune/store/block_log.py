"""Rows done so far: appended block by block, by any number of processes, and found again after any end.

Each process appends to a log of its own in `<artefact>.parts/`; a block is one header line (ids, lengths, checksum) and
its rows as bytes, so that a block cut off by a crash is seen and left out. All logs together with the last sealed
artefact answer "is this row done, and what are its bytes?" at 36 bytes of memory a row.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from codetune.data.ids import IdIndex
from codetune.errors import StaleError
from codetune.store.files import naming, remove, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_OPEN = 128
ID = re.compile("[0-9a-f]{16}")


class Rows:
    """The finished rows of several files, found by id. Of a row done twice (by shards of different counts) the first
    stands."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._ids, self._offsets = array("Q"), array("Q")
        self._lengths, self._numbers = array("I"), array("I")
        self._made: IdIndex | None = None

    def add_file(self, path: Path, rows: Iterator[tuple[str, int, int]]) -> None:
        """Takes in the rows of a file as (id, offset, length)."""
        for row_id, offset, length in rows:
            self._ids.append(int(row_id, 16))
            self._offsets.append(offset)
            self._lengths.append(length)
            self._numbers.append(len(self._files))
        self._files.append(path)
        self._made = None

    def __contains__(self, row_id: str) -> bool:
        return self._index.find(row_id) is not None

    def __len__(self) -> int:
        return len(self._index)

    def holds(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each of `ids`, whether its row is done."""
        return self._index.holds(ids)

    def read(self, row_id: str) -> bytes:
        """The row's bytes; KeyError where it is not done."""
        index = self._index.find(row_id)
        if index is None:
            raise KeyError(row_id)
        number = self._numbers[index]
        if number not in self._maps:
            if len(self._maps) == MOST_OPEN:  # each takes a file descriptor
                self._maps.pop(next(iter(self._maps))).close()
            with self._files[number].open("rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset = self._offsets[index]
        return self._maps[number][offset : offset + self._lengths[index]]

    @property
    def _index(self) -> IdIndex:
        if self._made is None:
            self._made = IdIndex(np.frombuffer(self._ids, dtype=np.uint64))
        return self._made


class BlockLog:
    """The log that this process appends to. Opening it cuts off a block that an earlier end left unfinished."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        end = 0
        if path.exists():
            for _, offset, length in _read_log(path):
                end = offset + length
            end += 1 if end else 0  # the newline that closes the last block
            os.truncate(path, end)
        self._file = path.open("ab", buffering=0)

    def append(self, ids: Sequence[str], rows: Sequence[bytes]) -> None:
        """Commits one block: after this returns, it survives the end of the process and of the machine."""
        payload = b"".join(rows)
        lengths = [len(row) for _, row in zip(ids, rows, strict=True)]
        header = {"ids": list(ids), "lengths": lengths, "crc": zlib.crc32(payload)}
        _append(self._file, json.dumps(header).encode() + b"\n" + payload + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()


def open_parts(directory: Path, settings: Mapping[str, Any], refuse_others: bool) -> bool:
    """Makes `directory` ready for parts made with `settings`. Parts of other settings are removed (then True comes
    back), or with `refuse_others`, where other shards may be at work on them, a StaleError says what differs."""
    record = directory / "settings.json"
    started_anew = False
    if record.exists():
        found = _read_settings(record)
        different = [
            key for key in {**found, **settings} if found.get(key) != json.loads(json.dumps(settings.get(key)))
        ]
        if different and refuse_others:
            key = different[0]
            raise StaleError(
                f"{directory} holds shards made with {key} {found.get(key)!r}, this one has {settings.get(key)!r}. "
                f"Use the same settings, or start anew: rm -r {directory}"
            )
        started_anew = bool(different)
    if started_anew or not record.exists():
        remove(directory)
        write_text(record, json.dumps(dict(settings), indent=2) + "\n")
    return started_anew


def _read_settings(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as why:  # no JSON, or no text
        found = why
    if not isinstance(found, dict):
        reason = found if isinstance(found, ValueError) else "not an object"
        raise StaleError(
            f"{record} is damaged ({reason}). Expected: the settings that made the rows beside it, which cannot be "
            f"trusted without. Start anew: rm -r {record.parent}"
        )
    return found


def log_path(directory: Path, shard: tuple[int, int]) -> Path:
    return directory / f"{shard[0]}-of-{shard[1]}.log"


def read_logs(directory: Path) -> Rows:
    """The rows of every finished block in the directory."""
    rows = Rows()
    for path in sorted(directory.glob("*.log")):
        rows.add_file(path, _read_log(path))
    return rows


def _read_log(path: Path) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of the rows of every whole block; ends at the first that is not whole."""
    with path.open("rb") as file:
        while (header := _read_header(file.readline())) and _is_of_a_block(header):
            offset = file.tell()
            payload = file.read(sum(header["lengths"]))
            if zlib.crc32(payload) != header["crc"] or file.read(1) != b"\n":
                return
            for row_id, length in zip(header["ids"], header["lengths"], strict=True):
                yield row_id, offset, length
                offset += length


def _is_of_a_block(header: Mapping[str, Any]) -> bool:
    ids, lengths = header.get("ids"), header.get("lengths")
    if not (isinstance(ids, list) and isinstance(lengths, list) and len(ids) == len(lengths) and "crc" in header):
        return False
    return all(isinstance(row_id, str) and ID.fullmatch(row_id) for row_id in ids) and all(
        isinstance(length, int) and length >= 0 for length in lengths
    )


def _read_header(line: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None  # a block that was cut off: whoever lost it does it again
    return header if isinstance(header, dict) and line.endswith(b"\n") else None


class LineLog:
    """JSON documents appended one a line (completions, verdicts). Opening cuts away a last line that is not whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        end = 0
        self.found: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                document = _read_header(line)
                if document is None:
                    break
                self.found.append(document)
                end += len(line)
            os.truncate(path, end)
        self._file = path.open("ab", buffering=0)

    def append(self, document: Mapping[str, Any]) -> None:
        _append(self._file, json.dumps(document).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()


def _append(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    with naming(Path(str(file.name))):
        while rest:  # an unbuffered write may take a part only, on a disk that fills up
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
