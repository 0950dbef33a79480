"""The memory that a stage keeps for a row: the growth of the peak between two data sets, divided by their difference in
rows, so that libraries, windows and samples, which do not grow, do not count. tests/performance/million.py measures the
same with a million rows."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from codetune.data.tokens import Span
from codetune.run_status import run_status
from codetune.stages.dataset import ensure_examples
from codetune.stages.stage import RunContext
from tests import pipeline
from tests.small_world import context_of, make_small_world

BYTES_A_ROW = 200  # product.md, Scale
FEW, MANY = 1000, 4000
DIMENSIONS = 8
STEPS: dict[str, Callable[[RunContext], object]] = {
    "examples": ensure_examples,
    "score": lambda context: pipeline.score(context, None),
    "embed": lambda context: pipeline.embed(context, None),
    "select": pipeline.select,
    "status": run_status,
}


class InstantScorer:
    """Likelihoods that cost nothing, because the test measures the flow around the network."""

    window = 4096

    def __init__(self, *_: object) -> None: ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        return [1 + sum(span.tokens) % 997 / 997 + (span.start == 1) for span in spans]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.model.likelihood.CausalScorer", InstantScorer)
    monkeypatch.setattr("codetune.selection.blocks.WINDOW_ROWS", 256)
    monkeypatch.setattr("codetune.selection.embed.SAMPLE_ROWS", 256)
    monkeypatch.setattr("codetune.selection.kmeans.CHUNK_ROWS", 256)
    monkeypatch.setattr("codetune.selection.embed.DIMENSIONS", DIMENSIONS)
    for sample in ("novelsum.REFERENCE_ROWS", "novelsum.SELECTION_ROWS", "embedding_map.MAP_ROWS"):
        monkeypatch.setattr(f"codetune.selection.{sample}", 256)


def world(directory: Path, rows: int, *, duplicates: bool = False) -> Path:
    project = make_small_world(directory, 2)
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            kept = number % 7 if duplicates else number
            row = {"instruction": f"Add {kept} to the argument.", "output": f"lambda x: x + {kept}"}
            file.write(json.dumps(row) + "\n")
    return project


def peaks(project: Path) -> dict[str, int]:
    """For each step, the peak of the bytes that it allocates beyond what was allocated before it."""
    found = {}
    for step, run in STEPS.items():
        gc.collect()
        tracemalloc.start()
        run(context_of(project, embed__batch_size=64))
        found[step] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def test_a_row_takes_no_more_memory_than_promised(tmp_path: Path) -> None:
    peaks(world(tmp_path / "first", 300))  # loads what is loaded once and kept
    few, many = peaks(world(tmp_path / "few", FEW)), peaks(world(tmp_path / "many", MANY))
    growth = {step: (many[step] - few[step]) / (MANY - FEW) for step in STEPS}
    one_copy = {"select": 4 * DIMENSIONS}  # of the vectors, for K-means
    assert not {step: found for step, found in growth.items() if found >= BYTES_A_ROW + one_copy.get(step, 0)}


def test_a_refused_row_takes_no_more_either(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        project = world(tmp_path / str(rows), rows, duplicates=True)
        gc.collect()
        tracemalloc.start()
        assert pipeline.score(context_of(project), None).refused == {"duplicate": rows - 7}
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    assert (peak(MANY) - peak(FEW)) / (MANY - FEW) < BYTES_A_ROW


def test_unfinished_rows_are_counted_by_status_at_the_same_price(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        project = world(tmp_path / str(rows), rows)
        assert pipeline.score(context_of(project, score__tokens_per_batch=2048), (0, 2)).state == "partial"
        gc.collect()
        tracemalloc.start()
        assert run_status(context_of(project))[0].state == "partial"
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100 * 10)
    assert (peak(MANY) - peak(FEW)) / (MANY - FEW) < BYTES_A_ROW
