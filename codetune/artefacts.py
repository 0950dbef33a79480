"""The row artefacts as files: scores.jsonl, embeddings.npy with embeddings.ids, selection.jsonl. Each is written from
finished rows in data-set order (a selection in its own order) and read back as records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from codetune.parts import BlockLog, Rows, read_logs
from codetune.records import Embeddings, Example, Message, Pick, Refusal, Score
from codetune.rowwise import Survey
from codetune.store import Run, remove, replacing

SPOOL_ROWS = 1000  # rows of a selection held in memory while they are put in order


def score_line(row: Score | Refusal) -> bytes:
    """A line of scores.jsonl, without its end."""
    return json.dumps(_refusal_document(row) if isinstance(row, Refusal) else asdict(row)).encode()


def write_scores(run: Run, rows: Survey, finished: Rows) -> tuple[int, Counter[str]]:
    """Writes scores.jsonl; returns how many rows have a score, and the others by reason."""
    scored, refused = 0, rows.refused()
    with replacing(run.scores) as temporary, temporary.open("wb") as file:
        for row in rows.rows():
            line = score_line(row) if isinstance(row, Refusal) else finished.read(row)
            if not isinstance(row, Refusal):
                reason = json.loads(line).get("refused")
                scored += reason is None
                refused.update([reason] if reason else [])
            file.write(line + b"\n")
    return scored, refused


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


def embedding_bytes(vector: np.ndarray[tuple[int], np.dtype[np.float32]], cut: bool) -> bytes:
    """A finished row of embed: the vector, and a byte that tells whether the encoder's window cut its instruction."""
    return vector.tobytes() + bytes([cut])


def write_embeddings(
    run: Run, rows: Survey, finished: Rows, known_cut: set[str]
) -> tuple[int, Counter[str], list[str]]:
    """Writes embeddings.npy and embeddings.ids. Returns the number of vectors, refusals by reason, and the ids of the
    instructions that were cut; `known_cut` are those of the last artefact, whose rows carry no such mark."""
    ids = [row for row in rows.rows() if isinstance(row, str)]
    dimension = len(finished.read(ids[0])) // 4 if ids else 0
    cut = []
    with replacing(run.embedding_ids) as ids_file, replacing(run.embeddings) as temporary:
        ids_file.write_text("".join(f"{row_id}\n" for row_id in ids), encoding="ascii")
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), dimension)}
            np.lib.format.write_array_header_1_0(file, header)
            for row_id in ids:
                row = finished.read(row_id)
                file.write(row[: 4 * dimension])
                if row[4 * dimension :] == b"\x01" or (len(row) == 4 * dimension and row_id in known_cut):
                    cut.append(row_id)
    return len(ids), rows.refused(), cut


def sealed_embeddings(run: Run) -> Iterator[tuple[str, int, int]]:
    """(id, offset, length) of the vectors in embeddings.npy."""
    embeddings = read_embeddings(run)
    length = embeddings.vectors.shape[1] * 4
    start = run.embeddings.stat().st_size - len(embeddings.ids) * length
    for number, row_id in enumerate(embeddings.ids):
        yield row_id, start + number * length, length


def read_embeddings(run: Run) -> Embeddings:
    """The vectors, memory-mapped, and their ids."""
    vectors = np.load(run.embeddings, mmap_mode="r", allow_pickle=False)
    return Embeddings(run.embedding_ids.read_text(encoding="ascii").split(), vectors)


def write_selection(run: Run, examples: Iterator[Example], picks: Mapping[str, Pick]) -> None:
    """Writes selection.jsonl in the order of `picks`, holding no more than some rows in memory."""
    spool = run.parts(run.selection)
    remove(spool)
    with BlockLog(spool / "rows.log") as log:
        waiting: dict[str, bytes] = {}
        for example in examples:
            if example.id in picks:
                waiting[example.id] = _selection_line(example, picks[example.id])
            if len(waiting) == SPOOL_ROWS:
                log.append(list(waiting), list(waiting.values()))
                waiting.clear()
        log.append(list(waiting), list(waiting.values()))
    rows = read_logs(spool)
    with replacing(run.selection) as temporary, temporary.open("wb") as file:
        file.writelines(rows.read(row_id) + b"\n" for row_id in picks)
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


def _selection_line(example: Example, pick: Pick) -> bytes:
    """What a strategy does not know is absent."""
    row: dict[str, object] = {
        "id": example.id,
        "messages": [{"role": message.role, "content": message.content} for message in example.messages],
    }
    known = {"ifd": pick.ifd, "cluster": pick.cluster}
    row.update({name: value for name, value in known.items() if value is not None})
    return json.dumps(row, ensure_ascii=False).encode()
