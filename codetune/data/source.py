"""An instruction set, wherever it lies -> its rows, one at a time: an `Example` or a `Refusal` for each.

A row that cannot be used is refused with a reason and stops no other; a damaged file, or one without the columns that
the project names, is an error. Remembers of a row only its id and place, to know a duplicate. How the files are read
is `files.py` and `tables.py`; a name that is no path is a data set on the hub."""

from __future__ import annotations

import glob
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from codetune.data.files import DATA_SUFFIXES, Row, data_suffix, read_json_rows
from codetune.errors import DataError
from codetune.project.sections import Dataset
from codetune.records import Example, Message, Refusal, Role, content_id
from codetune.text import lone_surrogate

ROLES = get_args(Role)
WHOLE_SPLIT = "train"  # the default; what files are
FIRST_SLOTS = 1024  # a power of two
PATIENCE_ROWS = 100  # so many rows without the columns, and none with them, are the file's fault and not the rows'


def read_examples(dataset: Dataset, location: str) -> Iterator[Example | Refusal]:
    """Every row of the data set, in order; of identical rows the first, the others refused."""
    seen = _Seen()
    for rows in _open_sources(dataset, location):
        for row in _require_columns(rows, dataset):
            result = _read_row(row, dataset)
            original = seen.place_of(result.id, row) if result.id is not None else None
            yield result if original is None else Refusal(None, f"duplicate of {original}", row.at)


def dataset_fingerprint(dataset: Dataset, location: str, digest: Callable[[Path], str]) -> str:
    """SHA-256 over the names and contents of the data files; of a hub data set over its name, commit and split."""
    files = _local_files(dataset, location)
    if files is None:
        from codetune.data.tables import find_hub_dataset

        parts = [dataset.path, find_hub_dataset(dataset.path).name, dataset.split]
    else:
        parts = [part for file in files for part in (file.shown, digest(file.path))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_here(dataset: Dataset, location: str) -> bool:
    """Whether the data set lies on this machine, as files or in the hub's cache; asks nobody."""
    try:
        files = _local_files(dataset, location)
    except DataError:
        return False
    if files is not None:
        return True
    from codetune.data.hub import is_cached, is_hub_id

    return is_hub_id(dataset.path) and is_cached(dataset.path, "dataset")


@dataclass(frozen=True, slots=True)
class _DataFile:
    path: Path
    shown: str  # what stands before the colon of `at`


def _open_sources(dataset: Dataset, location: str) -> Iterator[Iterator[Row]]:
    files = _local_files(dataset, location)
    if files is None:
        from codetune.data.tables import find_hub_dataset, read_hub_rows

        yield read_hub_rows(find_hub_dataset(dataset.path), dataset.path, dataset.split)
        return
    if dataset.split != WHOLE_SPLIT:
        raise DataError(
            f"dataset.split is {dataset.split}, and {location} is no data set of the hub: files have no splits. "
            f"Expected: {WHOLE_SPLIT}, which is all of them. Name the files of that split in dataset.path."
        )
    for file in files:
        if data_suffix(file.path) == ".parquet":
            from codetune.data.tables import read_parquet_rows

            yield read_parquet_rows(file.path, file.shown)
        else:
            yield read_json_rows(file.path, file.shown)


def _local_files(dataset: Dataset, location: str) -> list[_DataFile] | None:
    """The files that `location` means, in a fixed order; None where it can only be a name on the hub."""
    path = Path(location).expanduser()
    if path.is_dir():
        inside = [file for file in path.rglob("*") if data_suffix(file) and file.is_file()]
        return _below(path, [file for file in inside if not _is_hidden(file.relative_to(path))], location)
    if path.exists():
        if data_suffix(path) is None:
            raise DataError(
                f"{location} is not a kind of file that codetune reads. Expected: {', '.join(DATA_SUFFIXES)}. "
                "Convert it, or mend dataset.path."
            )
        return [_DataFile(path, dataset.path)]
    if glob.has_magic(location):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
        files = [file for file in matches if data_suffix(file) and file.is_file()]
        # A link to a directory above is walked through some forty times: each file counts once, by its shortest path.
        once = {file.resolve(): file for file in sorted(files, key=lambda file: -len(file.parts))}
        return _below(_plain_part(path), once.values(), location)
    if data_suffix(path) or location.startswith((".", "/", "~")) or len(path.parts) > 2:
        raise DataError(
            f"There is no file {location}. Expected: a data file, a directory or glob of data files, or a data set on "
            "the hub. Mend dataset.path."
        )
    return None


def _below(base: Path, files: Iterable[Path], location: str) -> list[_DataFile]:
    found = sorted((_DataFile(file, file.relative_to(base).as_posix()) for file in files), key=lambda file: file.shown)
    if not found:
        raise DataError(
            f"{location} has no data files. Expected: at least one of {', '.join(DATA_SUFFIXES)}. Mend dataset.path."
        )
    return found


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _plain_part(pattern: Path) -> Path:
    magic = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    return Path(*pattern.parts[:magic])


def _require_columns(rows: Iterable[Row], dataset: Dataset) -> Iterator[Row]:
    """The rows unchanged; an error where of the first hundred, or all, none has the columns that the project names,
    and fewer are chats than are neither."""
    incoming = iter(rows)
    held: list[Row] = []
    for row in islice(incoming, PATIENCE_ROWS):
        held.append(row)
        if _has_columns(row.value, dataset):
            break
    else:
        _refuse_columns(held, dataset)
    yield from held
    yield from incoming


def _has_columns(value: object, dataset: Dataset) -> bool:
    return isinstance(value, dict) and {dataset.instruction, dataset.response} <= value.keys()


def _refuse_columns(held: Sequence[Row], dataset: Dataset) -> None:
    objects = [(row.at, row.value) for row in held if isinstance(row.value, dict)]
    neither = [(at, value) for at, value in objects if "messages" not in value]
    if len(objects) < 2 * len(neither):
        at, value = neither[0]
        absent = [name for name in (dataset.instruction, dataset.response) if name not in value]
        raise DataError(
            f"{at} has no column {' and no column '.join(absent)}; it has {', '.join(value) or 'none'}. "
            "Expected: an instruction and a response, or messages. Set dataset.instruction and dataset.response."
        )


def _read_row(row: Row, dataset: Dataset) -> Example | Refusal:
    value = row.value
    if not isinstance(value, dict):
        return Refusal(None, "not an object", row.at)
    if dataset.instruction in value and dataset.response in value:
        messages = _pair_messages(value, dataset)
    elif "messages" in value:
        messages = _chat_messages(value["messages"])
    else:
        absent = dataset.response if dataset.instruction in value else dataset.instruction
        messages = f"no column {absent}"
    if isinstance(messages, str):
        return Refusal(None, messages, row.at)
    if any(lone_surrogate(message.content) is not None for message in messages):
        return Refusal(None, "text is not valid Unicode", row.at)
    example = Example(content_id(messages), messages, row.at)
    fault = _fault(example)
    return example if fault is None else Refusal(example.id, fault, row.at)


def _pair_messages(value: dict[str, object], dataset: Dataset) -> tuple[Message, ...] | str:
    """The two turns of the row, or why it has none."""
    instruction, answer = value[dataset.instruction], value[dataset.response]
    addition = value.get("input") if "input" not in (dataset.instruction, dataset.response) else None
    if not isinstance(instruction, str):
        return "instruction is not text"
    if not isinstance(answer, str):
        return "answer is not text"
    if not isinstance(addition, str | None):
        return "input is not text"
    if addition and addition.strip():
        instruction = f"{instruction}\n\n{addition}"
    return Message("user", instruction), Message("assistant", answer)


def _chat_messages(turns: object) -> tuple[Message, ...] | str:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "messages is not a list of objects"
    if not all(isinstance(turn.get("content"), str) for turn in turns):
        return "a message's content is not text"
    if not all(turn.get("role") in ROLES for turn in turns):
        return f"a message's role is none of {', '.join(ROLES)}"
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _fault(example: Example) -> str | None:
    if not example.messages or example.messages[-1].role != "assistant":
        return "does not end with an assistant's turn"
    if all(message.role != "user" for message in example.messages):
        return "no user's turn before the answer"
    if not example.answer.strip():
        return "empty answer"
    if not any(message.content.strip() for message in example.messages if message.role == "user"):
        return "empty instruction"
    return None


class _Seen:
    """Which ids have come, and where, at some 30 bytes a row: a hash table with open addressing, whose slots hold the
    entry's number, from 1. An id is a digest, so that its lowest bits will do for a hash."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._numbers = array("q")
        self._slots = array("I", [0]) * FIRST_SLOTS
        self._places: list[tuple[int, str]] = []  # the first entry of each file, and the file

    def place_of(self, row_id: str, row: Row) -> str | None:
        """Where `row_id` came first; None where it is new, and from now on known to stand at `row`."""
        number = int(row_id, 16)
        slot = self._slot_of(number)
        if entry := self._slots[slot]:
            place = next(place for first, place in reversed(self._places) if first <= entry)
            return f"{place}{self._numbers[entry - 1]}"
        self._ids.append(number)
        self._numbers.append(row.number)
        self._slots[slot] = len(self._ids)
        if not self._places or self._places[-1][1] != row.place:
            self._places.append((len(self._ids), row.place))
        if 3 * len(self._ids) > 2 * len(self._slots):
            self._widen()
        return None

    def _slot_of(self, number: int) -> int:
        """Of the id's entry, or the free one where it is to go."""
        last = len(self._slots) - 1  # all ones: their count is a power of two
        slot = number & last
        while (entry := self._slots[slot]) and self._ids[entry - 1] != number:
            slot = (slot + 1) & last
        return slot

    def _widen(self) -> None:
        self._slots = array("I", [0]) * (2 * len(self._slots))
        for entry, number in enumerate(self._ids, start=1):
            self._slots[self._slot_of(number)] = entry
