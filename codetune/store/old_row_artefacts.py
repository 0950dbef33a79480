"""The writers of row artefacts from a `Survey`, until the stages write from examples.jsonl; then this module goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import IdIndex, unpack_id
from codetune.records import Example, Refusal, SelectedRows
from codetune.store.block_log import BlockLog, FinishedRows, read_logs
from codetune.store.files import remove, replacing
from codetune.store.row_artefacts import score_line
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from codetune.stages.blocks import Survey

SPOOL_ROWS = 1000


def write_scores(run: Run, rows: Survey, finished: FinishedRows) -> tuple[int, Counter[str], int]:
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


def write_embeddings(
    run: Run, rows: Survey, finished: FinishedRows, known_cut: IdIndex
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


def write_selection(run: Run, examples: Iterator[Example], picks: SelectedRows) -> None:
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


def _selection_line(example: Example, picks: SelectedRows, place: int) -> bytes:
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
