"""A data set, in files or on the Hub -> its rows, one at a time: an `Example` or a `Refusal` for each.

An unusable row is refused with a reason and stops no other row; a damaged file, or one without the columns that the
project names, is an error. Here is the one rule of what a conversation must be, for every stage: a system message or
none, then user and assistant in turn, none of them blank, the assistant last; before an assistant's turn there may be
calls, each with the turns of tools. The only parser of data sets: later stages read `examples.jsonl`."""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain, islice, takewhile
from pathlib import Path

from codetune.data.files import DATA_SUFFIXES, ColumnChoice, FileRow, data_suffix, read_file_rows
from codetune.data.row_formats import (
    Messages,
    columns_to_read,
    find_columns,
    find_row_format,
    left_out,
    messages_of,
)
from codetune.data.row_shapes import TURNS, columns_in, keys_to_set, kinds_of, rows_in, shape_of
from codetune.data.splits import files_of_split
from codetune.data.tool_calls import tools_json
from codetune.errors import DataError
from codetune.project.keys import required
from codetune.project.sections import Dataset
from codetune.records import DUPLICATE_OF, Example, Refusal, content_id
from codetune.text import is_blank
from codetune.user_files import matching_paths, require_plain_file

MOSTLY_ALIKE = 0.8  # names of files, by difflib
ROWS_TO_CHECK = 100  # where most of the first so many rows are of another shape, the file is wrong, not its rows
# A position is one integer: the file's number, the row's number there, a digest of what it has beside its messages.
ROW_BITS, CONTEXT_BITS = 40, 32
LARGEST_ID = 2**64 - 1
TURNS_IN_ORDER = re.compile("(u(ct+)*[ac])+")  # user; calls and the tools' turns; the assistant's answer, or a call


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data set where it lies. One of several has a name, and a weight (data/mixture.py)."""

    dataset: Dataset
    location: str
    name: str = ""
    weight: float = 1.0


def read_examples(dataset: Dataset, location: str) -> Iterator[Example | Refusal]:
    """Every row of the data set, as `read_sources`."""
    return (row for _, row in read_sources([DataSource(dataset, location)], {}) if row is not None)


def read_sources(
    sources: Iterable[DataSource], largest_ids: Mapping[str, int]
) -> Iterator[tuple[str, Example | Refusal | None]]:
    """Every row of every data set, in order, with the name of its data set; of rows with the same messages the first,
    the others refused. None for a usable row with an id above the largest of its data set, where there is one. Rows of
    a data set with a name stand at `NAME: FILE:LINE`, and the name is their source.

    Keeps in memory one entry a row, id -> position, to recognise duplicates: at most 200 bytes. Raises DataError for a
    missing or damaged file, and for a file without the expected columns."""
    first_positions: dict[int, int] = {}
    files: list[str] = []  # the part of `at` before the row's number, of each file
    for source in sources:
        for row in _rows_of(source):
            if files[-1:] != [row.at_file]:
                files.append(row.at_file)
            result = _read_row(row, source)
            if isinstance(result, Example) and int(result.id, 16) > largest_ids.get(source.name, LARGEST_ID):
                yield source.name, None
                continue
            position = (len(files) - 1 << ROW_BITS | row.number) << CONTEXT_BITS | _context_digest(result)
            first = position if result.id is None else first_positions.setdefault(int(result.id, 16), position)
            yield source.name, result if first == position else Refusal(None, _repeats(first, position, files), row.at)


def _rows_of(source: DataSource) -> Iterator[FileRow]:
    def choose(names: Sequence[str]) -> Sequence[str]:
        return columns_to_read(names, source.dataset)

    for rows in _open_files(source.dataset, source.location, choose):
        for row in _require_columns(rows, source.dataset):
            yield replace(row, source=f"{source.name}: {row.source}") if source.name else row


def _context_digest(row: Example | Refusal) -> int:
    if isinstance(row, Refusal) or not (row.left_out or row.tools):
        return 0
    return int.from_bytes(hashlib.sha256(repr((row.left_out, row.tools)).encode()).digest()[: CONTEXT_BITS // 8])


def _repeats(first: int, second: int, files: Sequence[str]) -> str:
    """The reason for refusing a row whose messages another row has."""
    file, number = divmod(first >> CONTEXT_BITS, 1 << ROW_BITS)
    is_same = (first ^ second) & ((1 << CONTEXT_BITS) - 1) == 0
    original = f"{files[file]}{number}"
    return f"{DUPLICATE_OF}{original}" if is_same else f"differs from {original} only in columns beside its messages"


def with_columns(dataset: Dataset, location: str) -> Dataset:
    """The data set with the columns that the project does not name, found from its first rows. Raises DataError as
    `read_examples`, and where none or several columns could be meant."""
    if dataset.instruction is not None and dataset.response is not None:
        return dataset
    named = required(dataset.path, "dataset.path")
    rows = list(islice(chain.from_iterable(_open_files(dataset, location, lambda names: ())), ROWS_TO_CHECK))
    values = [row.value for row in rows if isinstance(row.value, dict)]
    in_file = Counter(row.source for row in rows)
    for row in rows:
        if in_file[row.source] == 1:
            _require_no_table(row, dataset)
    if not values:
        _require_shape([(row.at, None) for row in rows if isinstance(row.value, list)], dataset)
        raise DataError(f"{named} holds no row that is an object. Expected: instructions with answers. Fix the data")
    counts = Counter(name for value in values for name in value)
    if not (usual := [name for name, count in counts.items() if 2 * count > len(values)]) and counts:
        raise DataError(
            f"{named} has no column that more than half of its rows have: {kinds_of(values)}. Expected: rows of one "
            "shape. Write each kind into a file of its own, and list these files under dataset, each with a name."
        )
    return find_columns(usual, dataset, named)


def dataset_fingerprint(dataset: Dataset, location: str, digest: Callable[[Path], str]) -> str:
    """SHA-256 over the digests of the data files in their order, and the split: the spelling of a path makes no
    difference, nor where a copy lies. For a data set on the Hub over its name, commit and split."""
    files = _files_of_split(dataset, location)
    if files is None:
        from codetune.data.hub import dataset_snapshot

        named = required(dataset.path, "dataset.path")
        parts = [named, dataset_snapshot(named).name, dataset.split]
    else:
        parts = [*map(digest, files.values()), dataset.split]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_here(dataset: Dataset, location: str) -> bool:
    """Whether the data set is on this machine, as files or in the Hub's cache. Makes no request to the Hub."""
    try:
        files = _local_files(dataset, location)
    except DataError:
        return False
    if files is not None:
        return True
    from codetune.data.hub import is_cached, is_hub_id

    return dataset.path is not None and is_hub_id(dataset.path) and is_cached(dataset.path, "dataset")


def files_of_other_splits(dataset: Dataset, location: str) -> list[str]:
    """The names of the data files at `location` that are not read, because another split is in their names."""
    taken = _files_of_split(dataset, location) or {}
    return [name for name in _local_files(dataset, location) or () if name not in taken]


def _open_files(dataset: Dataset, location: str, choose: ColumnChoice) -> Iterator[Iterator[FileRow]]:
    """The rows of each file, or those of the split of a data set on the Hub; of tables the chosen columns."""
    files = _files_of_split(dataset, location)
    if files is None:
        from codetune.data.hub import dataset_snapshot, read_hub_rows

        named = required(dataset.path, "dataset.path")
        yield read_hub_rows(dataset_snapshot(named), named, dataset.split, choose)
        return
    for source, path in files.items():
        yield read_file_rows(path, source, choose)


def _files_of_split(dataset: Dataset, location: str) -> dict[str, Path] | None:
    files = _local_files(dataset, location)
    return None if files is None else files_of_split(files, dataset, location)


def _local_files(dataset: Dataset, location: str) -> dict[str, Path] | None:
    """The data files at `location` (a file, a directory or a glob) by their names in `at`, sorted; None where it can
    only be the name of a data set on the Hub."""
    path = Path(location).expanduser()
    if path.is_dir():
        inside = [file for file in path.rglob("*") if data_suffix(file) and file.is_file()]
        visible = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return _sorted_below(path, visible, location)
    require_plain_file(path)
    if path.exists():
        if data_suffix(path) is None:
            raise DataError(
                f"{location} is not a kind of file that codetune reads. Expected: {', '.join(DATA_SUFFIXES)}. "
                "Convert it, or fix dataset.path."
            )
        return {required(dataset.path, "dataset.path"): path}
    if glob.has_magic(location):
        files = [file for file in matching_paths(str(path)) if data_suffix(file) and file.is_file()]
        # A link beside its file, or to a directory above: each file counts once, by its shortest path.
        once = {file.resolve(): file for file in sorted(files, key=lambda file: -len(file.parts))}
        before_wildcard = takewhile(lambda part: not glob.has_magic(part), path.parts)
        return _sorted_below(Path(*before_wildcard), once.values(), location)
    beside = [file.name for file in path.parent.glob("*") if data_suffix(file)]
    near = get_close_matches(path.name, beside, 1, MOSTLY_ALIKE)
    if (
        data_suffix(path)
        or (near and len(path.parts) == 2)
        or location.startswith((".", "/", "~"))
        or len(path.parts) > 2
    ):
        hint = f"; did you mean {path.parent / near[0]}?" if near else "."
        raise DataError(
            f"There is no file {location}{hint} Expected: a data file, a directory or glob of data files, or a data "
            "set on the Hub. Fix dataset.path."
        )
    return None


def _sorted_below(base: Path, files: Iterable[Path], location: str) -> dict[str, Path]:
    found = {file.relative_to(base).as_posix(): file for file in files}
    if not found:
        raise DataError(
            f"{location} has no data files. Expected: at least one of {', '.join(DATA_SUFFIXES)}. Fix dataset.path."
        )
    return dict(sorted(found.items()))


def _require_columns(rows: Iterable[FileRow], dataset: Dataset) -> Iterator[FileRow]:
    """The rows of a file, unchanged. Raises DataError behind the first hundred, or at the end of fewer, where most of
    them have neither the columns that the project names nor turns."""
    first: list[tuple[str, Sequence[str] | None]] = []  # where it stands, and its columns; None for an array
    only: FileRow | None = None
    for count, row in enumerate(rows):
        only = None if count else row
        if len(first) < ROWS_TO_CHECK and isinstance(row.value, dict | list):
            first.append((row.at, list(row.value) if isinstance(row.value, dict) else None))
            if len(first) == ROWS_TO_CHECK:
                _require_shape(first, dataset)
        yield row
    if only is not None:
        _require_no_table(only, dataset)
    if len(first) < ROWS_TO_CHECK:
        _require_shape(first, dataset)


def _require_no_table(row: FileRow, dataset: Dataset) -> None:
    """Raises DataError where the only row of a file holds all of its rows."""
    if not isinstance(row.value, dict):
        return
    is_known = find_row_format(row.value, dataset) is not None
    if (found := columns_in(row.value) or (None if is_known else rows_in(row.value))) is not None:
        shape, advice = found
        raise DataError(
            f"{row.at} is one object that holds {shape}. Expected: an array of objects, or one object a line. {advice}."
        )


def _require_shape(rows: Sequence[tuple[str, Sequence[str] | None]], dataset: Dataset) -> None:
    objects = [(at, columns) for at, columns in rows if columns is not None]
    if rows and not objects:
        raise DataError(
            f"{rows[0][0]} is a list. Expected: an object in each row, or one array of objects in a file that is "
            "named .json. Rename the file, or fix the data."
        )
    unknown = [(at, columns) for at, columns in objects if find_row_format(dict.fromkeys(columns), dataset) is None]
    if 0 < len(objects) < 2 * len(unknown):
        at, columns = unknown[0]
        pair = [name for name in (dataset.instruction, dataset.response) if name is not None]
        absent = [name for name in pair or TURNS[:2] if name not in columns]
        raise DataError(
            f"{at} has no column {' and no column '.join(absent)}; it has {', '.join(columns) or 'none'}: "
            f"{shape_of(columns)}. Expected: an instruction and a response, or a column messages or conversations. "
            f"{keys_to_set(columns)}."
        )


def _read_row(row: FileRow, source: DataSource) -> Example | Refusal:
    dataset = source.dataset
    messages = row.fault or messages_of(row.value, dataset)
    if isinstance(messages, str):
        return Refusal(None, messages, row.at)
    row_id, fault = content_id(messages), _fault(messages)
    if fault is not None:
        return Refusal(row_id, fault, row.at)
    assert isinstance(row.value, dict)
    row_format = find_row_format(row.value, dataset)
    assert row_format is not None
    context, tools = left_out(row.value, dataset), tools_json(row.value)
    return Example(row_id, messages, row.at, source.name or row.source, context, tools, row_format.name)


def _fault(messages: Messages) -> str | None:
    """Why a conversation is none to train on."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns or turns[-1].role != "assistant":
        return "does not end with an assistant's turn"
    if all(turn.role != "user" for turn in turns):
        return "no user's turn before the answer"
    order = "".join("c" if turn.calls else turn.role[0] for turn in turns)  # c: an assistant's call
    if re.search("(?<![ct])t", order):
        return "a tool's turn follows no call"
    if "s" in order:
        return "a system message behind another turn"
    if not TURNS_IN_ORDER.fullmatch(order):
        return "turns do not alternate between user and assistant"
    if is_blank(turns[-1].text):
        return "empty answer"
    if all(is_blank(turn.content) for turn in turns if turn.role == "user"):
        return "empty instruction"
    return "empty turn" if any(is_blank(turn.text) and turn.role != "tool" for turn in turns) else None
