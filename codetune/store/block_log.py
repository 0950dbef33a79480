"""Append-only logs of finished work, which survive a crash at any byte: rows in blocks, and JSON documents in lines.

Each process appends to its own log in `<artefact>.parts/`. A block is one header line (ids, lengths, CRC-32) and then
its rows as bytes, so that a block that a crash left incomplete is recognised and ignored. `FinishedRows` finds the rows
of all logs and of the last sealed artefact, at 36 bytes of memory a row."""

from __future__ import annotations

import json
import mmap
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from codetune.data.ids import IdIndex
from codetune.errors import StaleError
from codetune.store.files import append_to_disk, remove, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


SETTINGS = "settings.json"  # beside the logs: what made their rows
MAX_OPEN_FILES = 128  # memory-mapped logs; each takes a file descriptor
ID = re.compile("[0-9a-f]{16}")


class FinishedRows:
    """The finished rows of several files, found by id. Where several files hold a row (made by shards of different
    counts), the first one counts."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._ids, self._offsets = array("Q"), array("Q")
        self._lengths, self._file_numbers = array("I"), array("I")
        self._built_index: IdIndex | None = None

    def add_file(self, path: Path, rows: Iterator[tuple[str, int, int]]) -> None:
        """Adds the rows of a file, given as (id, offset, length) each."""
        for row_id, offset, length in rows:
            self._ids.append(int(row_id, 16))
            self._offsets.append(offset)
            self._lengths.append(length)
            self._file_numbers.append(len(self._files))
        self._files.append(path)
        self._built_index = None

    def __contains__(self, row_id: str) -> bool:
        return self._index.find(row_id) is not None

    def __len__(self) -> int:
        return len(self._index)

    def holds(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each of `ids`, whether its row is finished."""
        return self._index.holds(ids)

    def read(self, row_id: str) -> bytes:
        """The bytes of a row. Raises KeyError where it is not finished."""
        index = self._index.find(row_id)
        if index is None:
            raise KeyError(row_id)
        number = self._file_numbers[index]
        if number not in self._maps:
            if len(self._maps) == MAX_OPEN_FILES:
                self._maps.pop(next(iter(self._maps))).close()
            with self._files[number].open("rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset = self._offsets[index]
        return self._maps[number][offset : offset + self._lengths[index]]

    @property
    def _index(self) -> IdIndex:
        if self._built_index is None:
            self._built_index = IdIndex(np.frombuffer(self._ids, dtype=np.uint64))
        return self._built_index


class _AppendOnlyFile:
    """A file of entries for one writer, each of which is on disk when its write returns; for use in a `with`."""

    def __init__(self, path: Path, end: int) -> None:
        """Opens the file and cuts it at `end` (bytes), behind which a crash left an incomplete entry."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class BlockLog(_AppendOnlyFile):
    """The log of this process: blocks of rows. Opening it removes an incomplete block at its end."""

    def __init__(self, path: Path) -> None:
        end = 0
        for _, offset, length in _read_log(path):
            end = offset + length + 1  # with the newline that closes the block
        super().__init__(path, end)

    def append(self, ids: Sequence[str], rows: Sequence[bytes]) -> None:
        """Writes one block to disk: when this returns, it survives a crash of the process or of the machine."""
        payload = b"".join(rows)
        lengths = [len(row) for _, row in zip(ids, rows, strict=True)]
        header = {"ids": list(ids), "lengths": lengths, "crc": zlib.crc32(payload)}
        append_to_disk(self._file, json.dumps(header).encode() + b"\n" + payload + b"\n")


class LineLog(_AppendOnlyFile):
    """JSON objects, one a line (completions, verdicts). Opening it reads the objects that are there into `found` and
    removes everything from the first incomplete line on."""

    def __init__(self, path: Path) -> None:
        lines = list(_complete_lines(path))
        self.found = [document for document, _ in lines]
        super().__init__(path, sum(length for _, length in lines))

    def append(self, document: Mapping[str, object]) -> None:
        """Writes one object to disk: when this returns, it survives a crash of the process or of the machine."""
        append_to_disk(self._file, json.dumps(document).encode() + b"\n")


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a `LineLog`, up to the first incomplete line; its process may be writing at the same time."""
    return [document for document, _ in _complete_lines(path)]


def open_parts(directory: Path, settings: Mapping[str, object], refuse_others: bool) -> bool:
    """Prepares `directory` for logs made with `settings`. Removes logs made with other settings and returns True for
    them; with `refuse_others`, because other shards may be writing them, raises StaleError that names the difference
    instead. Raises StaleError where the record of the settings is damaged."""
    wanted = json.dumps(dict(settings), indent=2)
    found, expected = read_settings(directory), json.loads(wanted)
    different = [key for key in {**(found or {}), **expected} if (found or {}).get(key) != expected.get(key)]
    if found is not None and not different:
        return False
    if found is not None and refuse_others:
        key = different[0]
        raise StaleError(
            f"{directory} holds shards made with {key} {found.get(key)!r}, this one has {settings.get(key)!r}. "
            f"Use the same settings, or another name for this run (--set name=NEW). To start again, move them away: "
            f"mv {directory} {directory}.old"
        )
    remove(directory)
    write_text(directory / SETTINGS, wanted + "\n")
    return found is not None


def read_settings(directory: Path) -> dict[str, object] | None:
    """The settings that the logs in `directory` were made with; None where there are none. Raises StaleError where
    their record is damaged."""
    record = directory / SETTINGS
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as why:  # no JSON, or no text
        found = why
    if not isinstance(found, dict):
        reason = found if isinstance(found, ValueError) else "not an object"
        raise StaleError(
            f"{record} is damaged ({reason}). Expected: the settings that made the rows beside it; without them "
            f"the rows cannot be used. Move them away, to start again: mv {record.parent} {record.parent}.old"
        )
    return found


def log_path(directory: Path, shard: tuple[int, int]) -> Path:
    """The log of a shard (index, count)."""
    return directory / f"{shard[0]}-of-{shard[1]}.log"


def read_logs(directory: Path) -> FinishedRows:
    """The rows of every complete block of the logs in `directory`."""
    rows = FinishedRows()
    for path in sorted(directory.glob("*.log")):
        rows.add_file(path, _read_log(path))
    return rows


def _read_log(path: Path) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of each row of a log, up to the first incomplete block; nothing where there is no log."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while header := _read_header(file.readline()):
            rows, crc = header
            offset = file.tell()
            payload = file.read(sum(length for _, length in rows))
            if zlib.crc32(payload) != crc or file.read(1) != b"\n":
                return
            for row_id, length in rows:
                yield row_id, offset, length
                offset += length


def _read_header(line: bytes) -> tuple[list[tuple[str, int]], int] | None:
    """The (id, length) of each row of a block, and the CRC-32 of all their bytes; None for a line that is no header."""
    match _read_object(line):
        case {"ids": list(ids), "lengths": list(lengths), "crc": int(crc)} if len(ids) == len(lengths):
            are_ids = all(isinstance(row_id, str) and ID.fullmatch(row_id) for row_id in ids)
            if are_ids and all(isinstance(length, int) and length >= 0 for length in lengths):
                return list(zip(ids, lengths, strict=True)), crc
    return None


def _complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(object, bytes of its line) of a log of lines, up to the first incomplete one; nothing where there is no log."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if (document := _read_object(line)) is None:
            return
        yield document, len(line)


def _read_object(line: bytes) -> dict[str, object] | None:
    """The JSON object of a line; None where a crash left the line incomplete."""
    try:
        document = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return document if isinstance(document, dict) and line.endswith(b"\n") else None
