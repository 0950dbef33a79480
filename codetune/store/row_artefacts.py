"""The row artefacts as files: scores.jsonl, embeddings.npy with embeddings.ids, selection.jsonl. Each is written from
finished rows in data-set order (a selection in its own order) and read back as records.
"""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import IdIndex, pack_ids, unpack_id
from codetune.records import Embeddings, Example, Message, Picks, Refusal, Score
from codetune.store.block_log import BlockLog, Rows, read_logs
from codetune.store.files import remove, replacing
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from codetune.stages.blocks import Survey

SPOOL_ROWS = 1000  # rows of a selection held in memory while they are put in order


def score_line(row: Score | Refusal) -> bytes:
    """A line of scores.jsonl, without its end."""
    return json.dumps(_refusal_document(row) if isinstance(row, Refusal) else asdict(row)).encode()


def write_scores(run: Run, rows: Survey, finished: Rows) -> tuple[int, Counter[str], int]:
    """Writes scores.jsonl; returns how many rows have a score, the others by reason, and how many answers were cut."""
    scored, refused, truncated = 0, rows.refused(), 0
    with replacing(run.scores) as temporary, temporary.open("wb") as file:
        for row in rows.rows():
            line = score_line(row) if isinstance(row, Refusal) else finished.read(row)
            if not isinstance(row, Refusal):
                document = json.loads(line)
                reason = document.get("refused")
                scored += reason is None
                truncated += document.get("truncated", False)
                refused.update([reason] if reason else [])
            file.write(line + b"\n")
    return scored, refused, truncated


def sealed_scores(run: Run) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of the lines of scores.jsonl that belong to a row."""
    offset = 0
    with run.scores.open("rb") as file:
        for line in file:
            row_id = json.loads(line)["id"]
            if row_id is not None:
                yield row_id, offset, len(line) - 1
            offset += len(line)


def read_scores(run: Run) -> Iterator[Score | Refusal]:
    with run.scores.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            document = json.loads(line)
            if "refused" in document:
                yield Refusal(document["id"], document["refused"], document.get("at", f"{run.scores}:{number}"))
            else:
                yield Score(**document)


def read_difficulties(run: Run) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The ids in scores.jsonl and the IFD of each, NaN where it was refused; at 16 bytes a row."""
    ids, difficulties = array("Q"), array("d")
    for row in read_scores(run):
        if row.id is not None:
            ids.append(int(row.id, 16))
            difficulties.append(math.nan if isinstance(row, Refusal) else row.ifd)
    return np.frombuffer(ids, dtype=np.uint64), np.frombuffer(difficulties, dtype=np.float64)


def embedding_bytes(vector: np.ndarray[tuple[int], np.dtype[np.float32]], cut: bool) -> bytes:
    """A finished row of embed: the vector, and a byte that tells whether the encoder's window cut its instruction."""
    return vector.tobytes() + bytes([cut])


def write_embeddings(
    run: Run, rows: Survey, finished: Rows, known_cut: IdIndex
) -> tuple[int, Counter[str], NDArray[np.bool_]]:
    """Writes embeddings.npy and embeddings.ids. Returns the number of vectors, refusals by reason, and of each vector
    whether its instruction was cut; `known_cut` are those of the last artefact, whose rows carry no such mark."""
    cut, first = np.zeros(rows.usable, dtype=np.bool_), next(_usable(rows), None)
    size = 4 * (len(finished.read(first)) // 4) if first is not None else 0  # bytes of a vector
    with (
        replacing(run.embedding_ids) as ids_path,
        replacing(run.embeddings) as path,
        ids_path.open("w", encoding="ascii") as ids,
        path.open("wb") as vectors,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows.usable, size // 4)}
        np.lib.format.write_array_header_1_0(vectors, header)
        for number, row_id in enumerate(_usable(rows)):
            row = finished.read(row_id)
            vectors.write(row[:size])
            ids.write(f"{row_id}\n")
            cut[number] = row[size:] == b"\x01" or (len(row) == size and known_cut.find(row_id) is not None)
    return rows.usable, rows.refused(), cut


def _usable(rows: Survey) -> Iterator[str]:
    return (row for row in rows.rows() if isinstance(row, str))


def pack_marks(marks: NDArray[np.bool_]) -> str:
    """A mark for each row as text for a manifest, at a sixth of a byte a row.

    >>> pack_marks(np.array([True, False, True])), unpack_marks("oA==", 3).tolist()
    ('oA==', [True, False, True])
    """
    return base64.b64encode(np.packbits(marks).tobytes()).decode("ascii")


def unpack_marks(text: str, rows: int) -> NDArray[np.bool_]:
    bits = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(bits, count=rows).astype(np.bool_)


def sealed_embeddings(run: Run) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of the vectors in embeddings.npy."""
    vectors = np.load(run.embeddings, mmap_mode="r", allow_pickle=False)
    length = vectors.shape[1] * 4
    start = run.embeddings.stat().st_size - len(vectors) * length
    with run.embedding_ids.open(encoding="ascii") as ids:
        for number, row_id in enumerate(ids):
            yield row_id.strip(), start + number * length, length


def read_embeddings(run: Run) -> Embeddings:
    """The vectors, memory-mapped, and their ids."""
    vectors = np.load(run.embeddings, mmap_mode="r", allow_pickle=False)
    with run.embedding_ids.open(encoding="ascii") as ids:
        return Embeddings(pack_ids(ids), vectors)


def write_selection(run: Run, examples: Iterator[Example], picks: Picks) -> None:
    """Writes selection.jsonl in the order of `picks`, holding no more than some rows in memory."""
    spool, index = run.parts(run.selection), IdIndex(picks.ids)
    remove(spool)
    with BlockLog(spool / "rows.log") as log:
        waiting: dict[str, bytes] = {}
        for example in examples:
            place = index.find(example.id)
            if place is not None:
                waiting[example.id] = _selection_line(example, picks, place)
            if len(waiting) == SPOOL_ROWS:
                log.append(list(waiting), list(waiting.values()))
                waiting.clear()
        log.append(list(waiting), list(waiting.values()))
    rows = read_logs(spool)
    with replacing(run.selection) as temporary, temporary.open("wb") as file:
        file.writelines(rows.read(unpack_id(int(number))) + b"\n" for number in picks.ids)
    remove(spool)


def read_selection(path: Path) -> Iterator[Example]:
    """The rows of a selection as training reads them."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
            yield Example(row["id"], messages, f"{path}:{number}")


def _refusal_document(refusal: Refusal) -> dict[str, str | None]:
    if refusal.id is None:
        return {"id": None, "at": refusal.at, "refused": refusal.reason}
    return {"id": refusal.id, "refused": refusal.reason}


def _selection_line(example: Example, picks: Picks, place: int) -> bytes:
    """What a strategy does not know is absent."""
    row: dict[str, object] = {
        "id": example.id,
        "messages": [{"role": message.role, "content": message.content} for message in example.messages],
    }
    if picks.ifd is not None:
        row["ifd"] = float(picks.ifd[place])
    if picks.cluster is not None:
        row["cluster"] = int(picks.cluster[place])
    return json.dumps(row, ensure_ascii=False).encode()
