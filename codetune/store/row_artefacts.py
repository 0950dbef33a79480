"""The row artefacts as files: scores.jsonl, embeddings.npy with embeddings.ids, selection.jsonl with holdout.jsonl.
Scores and embeddings are written from finished rows in the order of examples.jsonl, a selection in its own order; all
of them are read back as records. A writer keeps at most some 40 bytes a row in memory."""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import IdIndex, pack_ids
from codetune.errors import StaleError
from codetune.records import Embeddings, Example, Refusal, Score, ScoreColumns, SelectedRows
from codetune.store.block_log import FinishedRows
from codetune.store.examples import example_ids, id_of_line, read_ids, read_lines, read_messages, read_tools
from codetune.store.files import replacing, write_text
from codetune.store.manifest import set_aside_command
from codetune.store.run_directory import Run

TAKEN = "taken"
ELIGIBLE = (TAKEN, "not taken")  # what becomes of the rows that the strategy may take
ROW_KEYS = ("id", "messages", "tools")  # what a selection and the held-out rows have of examples.jsonl
# As in the data documentation of LLaMA-Factory 0.9.5; without `tags` it expects "from" and "value".
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
LLAMA_FACTORY_FORMAT = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _TAGS}
# As its converters read: in the format sharegpt calls are left out.
LLAMA_FACTORY_FORMAT_OF_TOOLS = {
    "formatting": "openai",
    "columns": {"messages": "messages", "tools": "tools"},
    "tags": {**_TAGS, "observation_tag": "tool", "function_tag": "function_call"},
}
KEYS_OF_TOOLS = (b'"tools": [', b'"tool_calls": [')  # in a text the quotes would be escaped


class RowOutcome(TypedDict):
    """What became of a row in a selection; a figure that its strategy does not know is absent."""

    id: str | None  # None for a row that could not be read
    at: NotRequired[str]  # of a row without an id
    why: str
    ifd: NotRequired[float]
    pmi: NotRequired[float]
    cluster: NotRequired[int]


def score_line(row: Score | Refusal) -> bytes:
    """A line of scores.jsonl, without its newline."""
    if isinstance(row, Score):
        document = {name: value for name, value in asdict(row).items() if value is not None}
        if row.token_differences is not None:
            document["token_differences"] = base64.b64encode(row.token_differences).decode("ascii")
        return json.dumps(document).encode()
    at = {"at": row.at} if row.id is None else {}
    return json.dumps({"id": row.id, **at, "refused": row.reason}).encode()


def write_scores(run: Run, finished: FinishedRows, without: Collection[str]) -> tuple[int, Counter[str], int]:
    """Writes scores.jsonl from the finished rows, lines of it by id; rows lose the values `without`. Returns how many
    rows have a score, how many have none by reason, and how many answers were truncated. Raises KeyError for a usable
    row that is not finished."""
    scored, truncated = 0, 0
    unusable, without_score = Counter[str](), Counter[str]()
    with replacing(run.scores) as temporary, temporary.open("wb") as file:
        for row in read_ids(run):
            if isinstance(row, Refusal):
                line = score_line(row)
                unusable[row.kind] += 1
            else:
                line = finished.read(row)
                document = json.loads(line)
                if not document.keys().isdisjoint(without):
                    document = {name: value for name, value in document.items() if name not in without}
                    line = json.dumps(document).encode()
                scored += "refused" not in document
                truncated += document.get("truncated", False)
                without_score.update([document["refused"]] if "refused" in document else [])
            file.write(line + b"\n")
    return scored, unusable + without_score, truncated


def sealed_scores(run: Run, is_wanted: Callable[[Score | Refusal], bool]) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of each line of scores.jsonl that has an id and is wanted, for `FinishedRows.add_file`."""
    offset = 0
    with run.scores.open("rb") as file:
        for line in file:
            if (row_id := id_of_line(line)) is not None and is_wanted(_score_row(line, "")):
                yield row_id, offset, len(line) - 1
            offset += len(line)


def read_scores(run: Run) -> Iterator[Score | Refusal]:
    """The rows of scores.jsonl in their order."""
    with run.scores.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield _score_row(line, f"{run.scores}:{number}")


def _score_row(line: str | bytes, at: str) -> Score | Refusal:
    document = json.loads(line)
    if "refused" in document:
        return Refusal(document["id"], document["refused"], document.get("at", at))
    if "token_differences" in document:
        document["token_differences"] = base64.b64decode(document["token_differences"])
    return Score(**document)


def finished_scores(finished: FinishedRows, ids: Iterable[str]) -> dict[str, Score]:
    """The scores among the finished rows `ids`, by id."""
    rows = {row_id: _score_row(finished.read(row_id), "") for row_id in ids if row_id in finished}
    return {row_id: row for row_id, row in rows.items() if isinstance(row, Score)}


def read_token_differences(run: Run) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The id of each row of scores.jsonl that has one, in their order, and the differences of its tokens; none where
    the row has no score, or the score has none."""
    for row in read_scores(run):
        if row.id is not None:
            packed = row.token_differences if isinstance(row, Score) else None
            yield row.id, np.frombuffer(packed or b"", dtype="<f4")


def read_score_columns(run: Run) -> ScoreColumns:
    """The rows of scores.jsonl that have an id, as columns: 48 bytes a row."""
    ids, values = array("Q"), array("d")
    for row in read_scores(run):
        if row.id is not None:
            ids.append(int(row.id, 16))
            values.extend(_column_values(row))
    columns = np.frombuffer(values, dtype=np.float64).reshape(-1, 5).T
    return ScoreColumns(np.frombuffer(ids, dtype=np.uint64), *columns)


def _column_values(row: Score | Refusal) -> tuple[float, float, float, float, float]:
    if isinstance(row, Refusal):
        return (math.nan,) * 5
    pmi = math.nan if row.pmi is None else row.pmi
    shuffled = math.nan if row.nll_empty is None or row.nll_shuffled is None else row.nll_empty - row.nll_shuffled
    return row.ifd, pmi, shuffled, row.answer_tokens, row.nll_conditional


def embedding_bytes(vector: np.ndarray[tuple[int], np.dtype[np.float32]], cut: bool) -> bytes:
    """A finished row of `embed`: the vector [dim], then one byte: 1 where the encoder's window cut the instruction."""
    return vector.tobytes() + bytes([cut])


def write_embeddings(
    run: Run, finished: FinishedRows, known_cut: IdIndex
) -> tuple[int, Counter[str], NDArray[np.bool_]]:
    """Writes embeddings.npy (float32 [rows, dim]) and embeddings.ids from the finished rows. Returns the number of
    vectors, the refused rows by reason, and for each vector whether its instruction was cut; `known_cut` says so for
    rows of the last artefact, whose bytes have no mark. Raises KeyError for a usable row that is not finished."""
    rows = len(example_ids(run))
    cut, refused = np.zeros(rows, dtype=np.bool_), Counter[str]()
    first = next((row for row in read_ids(run) if isinstance(row, str)), None)
    vector_bytes = 4 * (len(finished.read(first)) // 4) if first is not None else 0
    with (
        replacing(run.embedding_ids) as ids_path,
        replacing(run.embeddings) as path,
        ids_path.open("w", encoding="ascii") as ids,
        path.open("wb") as vectors,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, vector_bytes // 4)}
        np.lib.format.write_array_header_1_0(vectors, header)
        index = 0
        for row in read_ids(run):
            if isinstance(row, Refusal):
                refused[row.kind] += 1
                continue
            content = finished.read(row)
            vectors.write(content[:vector_bytes])
            ids.write(f"{row}\n")
            has_mark = len(content) > vector_bytes
            cut[index] = content[-1] == 1 if has_mark else known_cut.find(row) is not None
            index += 1
    return rows, refused, cut


def pack_marks(marks: NDArray[np.bool_]) -> str:
    """Packs one mark per row into text for a manifest, a sixth of a byte a row.

    >>> pack_marks(np.array([True, False, True])), unpack_marks("oA==", 3).tolist()
    ('oA==', [True, False, True])
    """
    return base64.b64encode(np.packbits(marks).tobytes()).decode("ascii")


def unpack_marks(text: str, rows: int) -> NDArray[np.bool_]:
    """The marks that `pack_marks` packed, one for each of `rows` rows."""
    bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(bits, count=rows).astype(np.bool_)


def sealed_embeddings(run: Run) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of each vector in embeddings.npy, for `FinishedRows.add_file`."""
    vectors = np.load(run.embeddings, mmap_mode="r", allow_pickle=False)
    length = vectors.shape[1] * 4
    start = run.embeddings.stat().st_size - len(vectors) * length
    with run.embedding_ids.open(encoding="ascii") as ids:
        for number, row_id in enumerate(ids):
            yield row_id.strip(), start + number * length, length


def read_embeddings(run: Run) -> Embeddings:
    """The vectors (float32 [rows, dim], memory-mapped) and their ids."""
    vectors = np.load(run.embeddings, mmap_mode="r", allow_pickle=False)
    with run.embedding_ids.open(encoding="ascii") as ids:
        return Embeddings(pack_ids(ids), vectors)


def write_selection(run: Run, selected: SelectedRows, why: Iterable[str]) -> None:
    """Writes selection.jsonl in the order of `selected`; `why` says of each row why it was taken. A value that the
    strategy does not know is absent. Raises KeyError for a selected row that is no usable row."""
    with replacing(run.selection) as temporary, temporary.open("wb") as file:
        for index, (line, reason) in enumerate(zip(read_lines(run, selected.ids), why, strict=True)):
            source = json.loads(line)
            row = {key: source[key] for key in ROW_KEYS if key in source}
            if selected.ifd is not None:
                row["ifd"] = float(selected.ifd[index])
            if selected.pmi is not None:
                row["pmi"] = float(selected.pmi[index])
            if selected.cluster is not None:
                row["cluster"] = int(selected.cluster[index])
            row["why"] = reason
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def write_holdout(run: Run, ids: NDArray[np.uint64]) -> None:
    """Writes holdout.jsonl, the rows `ids` in their order; removes it where there are none. Raises KeyError for an id
    that no usable row has."""
    if not len(ids):
        run.holdout.unlink(missing_ok=True)
        return
    with replacing(run.holdout) as temporary, temporary.open("wb") as file:
        for line in read_lines(run, ids):
            source = json.loads(line)
            row = {key: source[key] for key in ROW_KEYS if key in source}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def write_dataset_info(run: Run) -> None:
    """Writes dataset_info.json, by which LLaMA-Factory reads selection.jsonl, and holdout.jsonl where there is one; the
    run directory is its `dataset_dir`."""
    files = [path for path in (run.selection, run.holdout) if path.exists()]
    entries = {path.stem: {"file_name": path.name, **_llama_factory_format(path)} for path in files}
    write_text(run.dataset_info, json.dumps(entries, indent=2) + "\n")


def _llama_factory_format(path: Path) -> Mapping[str, object]:
    with path.open("rb") as file:
        has_tools = any(key in line for line in file for key in KEYS_OF_TOOLS)
    return LLAMA_FACTORY_FORMAT_OF_TOOLS if has_tools else LLAMA_FACTORY_FORMAT


def write_excluded(run: Run, rows: Iterable[tuple[Refusal | str, str, Mapping[str, float]]]) -> None:
    """Writes selection.excluded.jsonl: for each row that was not taken its id, why, and its figures where there are
    any; a row without an id is known by its position in the data set."""
    with replacing(run.excluded) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, why, figures in rows:
            known = {"id": row} if isinstance(row, str) else {"id": row.id} | ({"at": row.at} if row.id is None else {})
            file.write(json.dumps({**known, "why": why, **figures}) + "\n")


def write_selection_report(run: Run, report: Mapping[str, object]) -> None:
    """Writes selection.report.json: a line for each of the report's keys."""
    lines = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in report.items())
    write_text(run.selection_report, "{\n" + ",\n".join(lines) + "\n}\n")


def read_excluded(run: Run) -> Iterator[tuple[str | None, str]]:
    """The id of each row of selection.excluded.jsonl (None for a row without one), and why it was not taken. Raises as
    `read_outcomes`."""
    yield from ((row["id"], row["why"]) for row in _excluded_rows(run))


def read_reasons(run: Run) -> Iterator[tuple[str, str]]:
    """The id of each row of selection.jsonl, and why it was taken."""
    with run.selection.open(encoding="utf-8") as lines:
        yield from ((row["id"], row["why"]) for row in map(json.loads, lines))


def read_outcomes(run: Run) -> Iterator[RowOutcome]:
    """The rows of selection.jsonl, without messages and with `why` "taken", then those of selection.excluded.jsonl.
    Raises StaleError where the latter is damaged: no manifest tells of a change in it."""
    with run.selection.open(encoding="utf-8") as taken:
        for row in map(json.loads, taken):
            del row["messages"]
            row.pop("tools", None)
            row["why"] = TAKEN
            yield row
    yield from _excluded_rows(run)


def _excluded_rows(run: Run) -> Iterator[RowOutcome]:
    try:
        with run.excluded.open(encoding="utf-8") as lines:
            for line in lines:
                row: RowOutcome = json.loads(line)
                yield {**row, "id": row["id"], "why": row["why"]}
    except (OSError, ValueError, LookupError, TypeError) as why:
        raise StaleError(
            f"{run.excluded} is damaged ({why}). Expected: the rows that were not taken, as codetune wrote them. Make "
            f"it again: {set_aside_command(run.selection)} && codetune run --to select"
        ) from None


def read_selection(path: Path) -> Iterator[Example]:
    """The rows of selection.jsonl or holdout.jsonl in their order."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            messages, tools = read_messages(row["messages"]), read_tools(row)
            yield Example(row["id"], messages, f"{path}:{number}", str(path), tools=tools)
