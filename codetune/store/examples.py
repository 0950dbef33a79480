"""The data set as one file of the run, `examples.jsonl`: rows -> lines in data-set order -> rows, ids, or lines by id.

    {"id": "c250886073cb6456", "messages": [{"role", "content"}, ...], "at": "a.jsonl:1", "source": "a.jsonl"}
    {"id": "0c3f1f4d0e9c2a57", "messages": [..., {"role", "content", "tool_calls"}], "at": ..., "source": ..., "tools"}
    {"id": null, "at": "a.jsonl:2", "refused": "duplicate of a.jsonl:1"}

The data files are parsed once, by `write_examples`; every stage reads this file. The id is at a fixed offset of its
line, so that ids are read without parsing JSON. Does not read data files (codetune.data.source)."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codetune.data.ids import IdIndex, unpack_id
from codetune.records import DUPLICATE_OF, Example, Message, MessageDocument, Refusal
from codetune.store.files import replacing
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

ID = slice(8, 24)  # 16 hex digits, after `{"id": "`
BEFORE_MESSAGES = b'", "messages"'  # follows the id in the line of a usable row


@dataclass(frozen=True, slots=True)
class ExamplesSummary:
    """A summary of the rows that `write_examples` wrote. `digest` is the SHA-256 of the ids, tools and refusals
    in order, without file names."""

    rows: int  # usable ones
    refused: Counter[str]  # kind of refusal -> rows
    digest: str
    left_out: Counter[str]  # column with context that no message has -> usable rows
    row_formats: Counter[str]  # name of a row format -> usable rows


def write_examples(run: Run, rows: Iterable[Example | Refusal]) -> ExamplesSummary:
    """Streams the rows of the data set into examples.jsonl. An error while they are read leaves the last file."""
    usable, digest = 0, hashlib.sha256()
    refused, left_out, row_formats = Counter[str](), Counter[str](), Counter[str]()
    with replacing(run.examples) as temporary, temporary.open("wb") as file:
        for row in rows:
            file.write(_line(row))
            if isinstance(row, Refusal):
                refused[row.kind] += 1
                digest.update(f"{row.id or 'null'} {row.kind}\n".encode())
            else:
                usable += 1
                left_out.update(name for name, _ in row.left_out)
                row_formats[row.row_format] += 1
                digest.update(f"{row.id} {row.tools}\n".encode() if row.tools else f"{row.id}\n".encode())
    return ExamplesSummary(usable, refused, digest.hexdigest(), left_out, row_formats)


def read_rows(run: Run) -> Iterator[Example | Refusal]:
    """All rows in data-set order."""
    for line in _lines(run):
        yield read_example(line) if is_usable(line) else _read_refusal(line)


def read_examples(run: Run) -> Iterator[Example]:
    """The usable rows in data-set order."""
    return (row for row in read_rows(run) if isinstance(row, Example))


def read_ids(run: Run) -> Iterator[str | Refusal]:
    """The id of each usable row, and each refused row, in data-set order; about ten times as fast as `read_rows`."""
    for line in _lines(run):
        yield line[ID].decode("ascii") if is_usable(line) else _read_refusal(line)


def first_of_duplicates(run: Run) -> dict[str, str]:
    """The reason of each duplicate that was refused as it was read -> the id of the row that it repeats."""
    refused = (row.reason for row in read_ids(run) if isinstance(row, Refusal))
    places = {reason.removeprefix(DUPLICATE_OF): reason for reason in refused if reason.startswith(DUPLICATE_OF)}
    rows = read_examples(run) if places else iter(())
    return {places[row.at]: row.id for row in rows if row.at in places}


def count_sources(run: Run, ids: NDArray[np.uint64]) -> dict[str, int]:
    """How many of the usable rows `ids` each source has, in the order of the names."""
    counts = Counter(json.loads(line)["source"] for line in read_lines(run, ids))
    return dict(sorted(counts.items()))


def example_ids(run: Run) -> NDArray[np.uint64]:
    """The ids of the usable rows in data-set order, as numbers."""
    return np.fromiter((int(line[ID], 16) for line in _lines(run) if is_usable(line)), dtype=np.uint64)


def read_lines(run: Run, ids: NDArray[np.uint64]) -> Iterator[bytes]:
    """The lines of the usable rows `ids`, in the order of `ids`. Keeps some 40 bytes a row of the data set in memory.
    Raises KeyError for an id that no usable row has."""
    with open_lines(run) as line_of:
        yield from map(line_of, map(unpack_id, ids.tolist()))


@contextmanager
def open_lines(run: Run) -> Iterator[Callable[[str], bytes]]:
    """Gives a function that reads the line of a usable row by its id, in any order. Keeps some 40 bytes a row of the
    data set in memory. The function raises KeyError for an id that no usable row has."""
    known, offsets, offset = array("Q"), array("Q"), 0
    for line in _lines(run):
        if is_usable(line):
            known.append(int(line[ID], 16))
            offsets.append(offset)
        offset += len(line)
    index = IdIndex(np.frombuffer(known, dtype=np.uint64))
    with run.examples.open("rb") as file:

        def line_of(wanted: str) -> bytes:
            position = index.find(wanted)
            if position is None:
                raise KeyError(wanted)
            file.seek(offsets[position])
            return file.readline()

        yield line_of


def read_example(line: bytes) -> Example:
    """The row in a line of examples.jsonl that is usable."""
    row = json.loads(line)
    return Example(row["id"], read_messages(row["messages"]), row["at"], row["source"], tools=read_tools(row))


def is_usable(line: bytes) -> bool:
    """Whether a line of examples.jsonl is a usable row."""
    return line.startswith(BEFORE_MESSAGES, ID.stop)


def id_of_line(line: bytes) -> str | None:
    """The id in a line of examples.jsonl or scores.jsonl; None where the row has none.

    >>> id_of_line(b'{"id": "c250886073cb6456", "ifd": 0.5}'), id_of_line(b'{"id": null, "at": "a.jsonl:2"}')
    ('c250886073cb6456', None)
    """
    return line[ID].decode("ascii") if line.startswith(b'"', ID.start - 1) else None


def read_messages(documents: Iterable[MessageDocument]) -> tuple[Message, ...]:
    """Messages from their JSON form."""
    return tuple(
        Message(
            document["role"],
            document["content"],
            json.dumps(document["tool_calls"], ensure_ascii=False) if "tool_calls" in document else "",
            document.get("tool_call_id", ""),
            document.get("name", ""),
            learned="weight" not in document,
        )
        for document in documents
    )


def read_tools(row: Mapping[str, object]) -> str:
    """The tools of a row of examples.jsonl or selection.jsonl, as JSON text."""
    return json.dumps(row["tools"], ensure_ascii=False) if "tools" in row else ""


def _lines(run: Run) -> Iterator[bytes]:
    with run.examples.open("rb") as file:
        yield from file


def _line(row: Example | Refusal) -> bytes:
    if isinstance(row, Refusal):
        return json.dumps({"id": row.id, "at": row.at, "refused": row.reason}).encode() + b"\n"
    messages = [message.document for message in row.messages]
    tools = {"tools": json.loads(row.tools)} if row.tools else {}
    document = {"id": row.id, "messages": messages, "at": row.at, "source": row.source, **tools}
    try:
        return json.dumps(document, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # the name of a data file need not be valid Unicode
        return json.dumps(document).encode() + b"\n"


def _read_refusal(line: bytes) -> Refusal:
    row = json.loads(line)
    return Refusal(row["id"], row["refused"], row["at"])
