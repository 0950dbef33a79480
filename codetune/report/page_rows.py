"""The rows of a selection as columns for the page: where each lies on the map, what became of it and why, its figures,
and the texts of some. A large set is thinned to a sample at equal distances, which ids make a random one."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from codetune import console
from codetune.data.ids import IdIndex, draw_numbers, pack_ids, unpack_id
from codetune.records import Score
from codetune.selection.diagnostics import STATES, MapDocument
from codetune.selection.embedding_map import MAP_ROWS
from codetune.selection.row_vectors import spread_sample
from codetune.store.examples import example_ids, read_example, read_lines
from codetune.store.manifest import read_manifest
from codetune.store.row_artefacts import ELIGIBLE, RowOutcome, read_embeddings, read_outcomes, read_reasons, read_scores
from codetune.store.run_directory import Run

INSTRUCTION_CHARACTERS, ANSWER_CHARACTERS = 1_500, 2_500  # of each text on the page
TEXT_CHARACTERS = 8_000_000  # of all texts together
DIGITS = 5
NEIGHBOURS, ROWS_AT_ONCE = 3, 100


def page_rows(run: Run, drawn: MapDocument | None, rows: int, taken: int, seed: int) -> dict[str, object]:
    """`drawn` is the map of selection.report.json; without one the rows have no place. `rows` and `taken` are its
    counts. `random` marks the rows that a random draw of as many eligible rows takes."""
    every = drawn["of_rows"] if drawn else rows
    ids: list[str] = drawn["id"] if drawn else _sample(run)
    shown = frozenset(ids)
    outcomes, eligible = _outcomes(run, ids)
    taken_by_draw = _random_draw(eligible, taken, seed)
    whys = [outcome and outcome["why"] for outcome in outcomes]
    texts = _texts(run, ids)
    reasons = {row_id: why for row_id, why in read_reasons(run) if row_id in shown}
    return {
        "of_rows": every,
        "states": STATES,
        "id": ids,
        "x": drawn["x"] if drawn else None,
        "y": drawn["y"] if drawn else None,
        "variance": drawn["variance"] if drawn else None,
        "state": drawn["state"] if drawn else list(map(_state, whys)),
        "cluster": [outcome and outcome.get("cluster") for outcome in outcomes],
        "why": [reasons.get(row_id, why) for row_id, why in zip(ids, whys, strict=True)],
        "ifd": [_rounded(outcome and outcome.get("ifd")) for outcome in outcomes],
        "pmi": [_rounded(outcome and outcome.get("pmi")) for outcome in outcomes],
        "tokens": _answer_tokens(run, ids),
        "random": np.isin(pack_ids(ids), taken_by_draw).astype(int).tolist(),
        "texts": texts,
        "neighbours": _neighbours(run, ids, frozenset(texts)) if drawn else None,
    }


def cut(text: str, characters: int) -> tuple[str, int]:
    """The beginning of a text, and how many characters it lacks.

    >>> cut("abcdef", 4), cut("abc", 4)
    (('abcd', 2), ('abc', 0))
    """
    return text[:characters], max(0, len(text) - characters)


def _sample(run: Run) -> list[str]:
    ids = example_ids(run)
    return list(map(unpack_id, ids[spread_sample(len(ids), MAP_ROWS)].tolist()))


def _outcomes(run: Run, ids: Sequence[str]) -> tuple[list[RowOutcome | None], NDArray[np.uint64]]:
    """What became of each of the rows `ids`, None for one that the selection does not know, and the ids of all eligible
    rows."""
    found: dict[str, RowOutcome | None] = dict.fromkeys(ids)
    eligible = array("Q")
    for outcome in console.track(read_outcomes(run), "report", None, "row"):
        row_id = outcome["id"]
        if row_id is not None and outcome["why"] in ELIGIBLE:
            eligible.append(int(row_id, 16))
        if row_id in found:
            found[row_id] = outcome
    return [found[row_id] for row_id in ids], np.frombuffer(eligible, dtype=np.uint64)


def _random_draw(eligible: NDArray[np.uint64], rows: int, seed: int) -> NDArray[np.uint64]:
    """As the strategy `random` draws."""
    if not len(eligible):
        return eligible
    return eligible[np.argsort(draw_numbers(eligible, str(seed)), kind="stable")[:rows]]


def _answer_tokens(run: Run, ids: Sequence[str]) -> list[int | None] | None:
    """None where no row is scored."""
    if read_manifest(run.scores) is None:
        return None
    found: dict[str, int | None] = dict.fromkeys(ids)
    for row in read_scores(run):
        if isinstance(row, Score) and row.id in found:
            found[row.id] = row.answer_tokens
    return [found[row_id] for row_id in ids]


def _texts(run: Run, ids: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """Instruction and answer, each cut: of all rows, or of as many as TEXT_CHARACTERS allow."""
    known = pack_ids(ids)
    known = known[np.isin(known, example_ids(run))]
    rows = map(read_example, read_lines(run, known))
    every = [
        (row.id, [cut(row.instruction, INSTRUCTION_CHARACTERS), cut(row.answer, ANSWER_CHARACTERS)]) for row in rows
    ]
    characters = sum(len(text) for _, texts in every for text, _ in texts)
    count = len(every) * TEXT_CHARACTERS // max(TEXT_CHARACTERS, characters)
    return dict(every[index] for index in spread_sample(len(every), count).tolist()) if count else {}


def _neighbours(run: Run, ids: Sequence[str], texts: Collection[str]) -> dict[str, list[tuple[int, float]]]:
    """Of each row in `texts` the nearest rows of the page: their positions in `ids`, and the cosines of their
    instructions' embeddings."""
    embeddings = read_embeddings(run)
    vectors = embeddings.vectors[IdIndex(embeddings.ids).positions(pack_ids(ids))]  # [rows, dim]
    count, found = min(NEIGHBOURS, len(ids) - 1), {}
    sample = np.array([index for index, row_id in enumerate(ids) if row_id in texts], dtype=np.intp)
    blocks = range(0, len(sample) if count else 0, ROWS_AT_ONCE)
    for first in console.track(blocks, "report: nearest rows", len(blocks), "block"):
        some = sample[first : first + ROWS_AT_ONCE]
        cosines = vectors[some] @ vectors.T  # [some, rows]
        cosines[np.arange(len(some)), some] = -np.inf  # itself
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for index, others, own in zip(some.tolist(), nearest.tolist(), cosines, strict=True):
            ranked = sorted((-float(own[other]), other) for other in others)
            found[ids[index]] = [(other, round(-negative, DIGITS)) for negative, other in ranked]
    return found


def _state(why: str | None) -> int:
    kind = (why or "").partition(":")[0]
    return STATES.index(kind) if kind in STATES else STATES.index("set aside")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
