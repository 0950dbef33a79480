"""A data set, in files or on the hub -> its rows, one at a time: an `Example` or a `Refusal` for each.

An unusable row is refused with a reason and stops no other row; a damaged file, or one without the columns that the
project names, is an error. The only parser of data sets: later stages read `examples.jsonl`."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path

from codetune.data.files import DATA_SUFFIXES, FileRow, data_suffix, read_file_rows
from codetune.data.row_formats import Messages, find_row_format, messages_of
from codetune.errors import DataError
from codetune.project.sections import Dataset
from codetune.records import Example, Refusal, content_id

WHOLE_SPLIT = "train"  # the default of dataset.split; a file is all of it
ROWS_TO_CHECK = 100  # when none of the first so many rows has the expected columns, the file is wrong, not its rows
ROW_BITS = 40  # a position is one integer: the file's number, and in the lowest bits the row's number in the file


def read_examples(dataset: Dataset, location: str) -> Iterator[Example | Refusal]:
    """Every row of the data set, in order; of identical rows the first, the others refused.

    Keeps in memory one entry a row, id -> position, to recognise duplicates: at most 200 bytes. Raises DataError for a
    missing or damaged file, and for a file without the expected columns."""
    first_positions: dict[int, int] = {}
    files: list[str] = []  # the part of `at` before the row's number, of each file
    for rows in _open_files(dataset, location):
        for row in _require_columns(rows, dataset):
            if files[-1:] != [row.at_file]:
                files.append(row.at_file)
            result = _read_row(row, dataset)
            position = len(files) - 1 << ROW_BITS | row.number
            first = position if result.id is None else first_positions.setdefault(int(result.id, 16), position)
            if first == position:
                yield result
            else:
                original = f"{files[first >> ROW_BITS]}{first & (1 << ROW_BITS) - 1}"
                yield Refusal(None, f"duplicate of {original}", row.at)


def dataset_fingerprint(dataset: Dataset, location: str, digest: Callable[[Path], str]) -> str:
    """SHA-256 over the digests of the data files in their order, and the split: the spelling of a path makes no
    difference, nor where a copy lies. For a data set on the hub over its name, commit and split."""
    files = _local_files(dataset, location)
    if files is None:
        from codetune.data.hub import dataset_snapshot

        parts = [dataset.path, dataset_snapshot(dataset.path).name, dataset.split]
    else:
        parts = [*map(digest, files.values()), dataset.split]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_here(dataset: Dataset, location: str) -> bool:
    """Whether the data set is on this machine, as files or in the hub's cache. Makes no request to the hub."""
    try:
        files = _local_files(dataset, location)
    except DataError:
        return False
    if files is not None:
        return True
    from codetune.data.hub import is_cached, is_hub_id

    return is_hub_id(dataset.path) and is_cached(dataset.path, "dataset")


def _open_files(dataset: Dataset, location: str) -> Iterator[Iterator[FileRow]]:
    """The rows of each file, or those of the split of a data set on the hub."""
    files = _local_files(dataset, location)
    if files is None:
        from codetune.data.hub import dataset_snapshot, read_hub_rows

        yield read_hub_rows(dataset_snapshot(dataset.path), dataset.path, dataset.split)
        return
    if dataset.split != WHOLE_SPLIT:
        raise DataError(
            f"dataset.split is {dataset.split}, and {location} is no data set of the hub: files have no splits. "
            f"Expected: {WHOLE_SPLIT}, which is all of them. Name the files of that split in dataset.path."
        )
    for source, path in files.items():
        yield read_file_rows(path, source)


def _local_files(dataset: Dataset, location: str) -> dict[str, Path] | None:
    """The data files at `location` (a file, a directory or a glob) by their names in `at`, sorted; None where it can
    only be the name of a data set on the hub."""
    path = Path(location).expanduser()
    if path.is_dir():
        inside = [file for file in path.rglob("*") if data_suffix(file) and file.is_file()]
        visible = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return _sorted_below(path, visible, location)
    if path.exists():
        if data_suffix(path) is None:
            raise DataError(
                f"{location} is not a kind of file that codetune reads. Expected: {', '.join(DATA_SUFFIXES)}. "
                "Convert it, or correct dataset.path."
            )
        return {dataset.path: path}
    if glob.has_magic(location):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
        files = [file for file in matches if data_suffix(file) and file.is_file()]
        # A link to a directory above is followed some forty times: each file counts once, by its shortest path.
        once = {file.resolve(): file for file in sorted(files, key=lambda file: -len(file.parts))}
        before_wildcard = takewhile(lambda part: not glob.has_magic(part), path.parts)
        return _sorted_below(Path(*before_wildcard), once.values(), location)
    if data_suffix(path) or location.startswith((".", "/", "~")) or len(path.parts) > 2:
        raise DataError(
            f"There is no file {location}. Expected: a data file, a directory or glob of data files, or a data set on "
            "the hub. Correct dataset.path."
        )
    return None


def _sorted_below(base: Path, files: Iterable[Path], location: str) -> dict[str, Path]:
    found = {file.relative_to(base).as_posix(): file for file in files}
    if not found:
        raise DataError(
            f"{location} has no data files. Expected: at least one of {', '.join(DATA_SUFFIXES)}. Correct dataset.path."
        )
    return dict(sorted(found.items()))


def _require_columns(rows: Iterable[FileRow], dataset: Dataset) -> Iterator[FileRow]:
    """The rows, unchanged. Raises DataError where none of the first hundred has the columns that the project names, and
    the rows of other formats are fewer than the rows of no format."""
    incoming = iter(rows)
    held: list[FileRow] = []
    for row in islice(incoming, ROWS_TO_CHECK):
        held.append(row)
        if isinstance(row.value, dict) and {dataset.instruction, dataset.response} <= row.value.keys():
            break
    else:
        _refuse_file_without_columns(held, dataset)
    yield from held
    yield from incoming


def _refuse_file_without_columns(rows: Sequence[FileRow], dataset: Dataset) -> None:
    objects = [(row.at, row.value) for row in rows if isinstance(row.value, dict)]
    unknown = [(at, columns) for at, columns in objects if find_row_format(columns, dataset) is None]
    if len(objects) < 2 * len(unknown):
        at, columns = unknown[0]
        absent = [name for name in (dataset.instruction, dataset.response) if name not in columns]
        raise DataError(
            f"{at} has no column {' and no column '.join(absent)}; it has {', '.join(columns) or 'none'}. "
            "Expected: an instruction and a response, or messages. Set dataset.instruction and dataset.response."
        )


def _read_row(row: FileRow, dataset: Dataset) -> Example | Refusal:
    messages = messages_of(row.value, dataset)
    if isinstance(messages, str):
        return Refusal(None, messages, row.at)
    row_id, fault = content_id(messages), _fault(messages)
    return Example(row_id, messages, row.at, row.source) if fault is None else Refusal(row_id, fault, row.at)


def _fault(messages: Messages) -> str | None:
    """Why a conversation has nothing to train on."""
    if not messages or messages[-1].role != "assistant":
        return "does not end with an assistant's turn"
    user_turns = [message for message in messages if message.role == "user"]
    if not user_turns:
        return "no user's turn before the answer"
    if not messages[-1].content.strip():
        return "empty answer"
    if not any(message.content.strip() for message in user_turns):
        return "empty instruction"
    return None
