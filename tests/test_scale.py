"""What a stage keeps of a row in memory: measured as the growth of the peak between two data sets, so that libraries,
windows and samples, which do not grow, stay out of it. The same at a million rows is `benchmarks/million.py`."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from codetune import workflow
from codetune.data.tokens import Span
from codetune.stages.stage import RunContext
from tests import pipeline
from tests.small_world import context_of, make_small_world

BYTES_A_ROW = 200  # product.md, Scale
FEW, MANY = 1500, 6000
DIMENSIONS = 8
STAGES: dict[str, Callable[[RunContext], object]] = {
    "score": lambda context: pipeline.score(context, None),
    "embed": lambda context: pipeline.embed(context, None),
    "select": pipeline.select,
    "status": workflow.status,
}


class InstantScorer:
    """Likelihoods that cost nothing: the flow around the network is what is measured."""

    window = 4096

    def __init__(self, *_: object) -> None: ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        return [1 + sum(span.tokens) % 997 / 997 + (span.start == 1) for span in spans]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.model.likelihood.CausalScorer", InstantScorer)
    monkeypatch.setattr("codetune.selection.blocks.WINDOW_ROWS", 256)
    monkeypatch.setattr("codetune.selection.embed.SAMPLE_ROWS", 256)
    monkeypatch.setattr("codetune.selection.embed.DIMENSIONS", DIMENSIONS)


def world(directory: Path, rows: int, *, duplicates: bool = False) -> Path:
    project = make_small_world(directory, 2)
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            kept = number % 7 if duplicates else number
            row = {"instruction": f"Add {kept} to the argument.", "output": f"lambda x: x + {kept}"}
            file.write(json.dumps(row) + "\n")
    return project


def peaks(project: Path) -> dict[str, int]:
    """Of each stage, the bytes that were held at once beyond what was held before it."""
    found = {}
    for stage, do in STAGES.items():
        gc.collect()
        tracemalloc.start()
        do(context_of(project, embed__batch_size=64))
        found[stage] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def test_a_row_takes_no_more_memory_than_promised(tmp_path: Path) -> None:
    peaks(world(tmp_path / "first", 300))  # whatever is loaded and kept once, is from now on
    few, many = peaks(world(tmp_path / "few", FEW)), peaks(world(tmp_path / "many", MANY))
    growth = {stage: (many[stage] - few[stage]) / (MANY - FEW) for stage in STAGES}
    one_copy = 4 * DIMENSIONS  # of the vectors, for K-means
    assert growth["score"] < BYTES_A_ROW
    assert growth["embed"] < BYTES_A_ROW
    assert growth["select"] < BYTES_A_ROW + one_copy
    assert growth["status"] < BYTES_A_ROW


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
        assert workflow.status(context_of(project))[0].state == "partial"
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100 * 10)
    assert (peak(MANY) - peak(FEW)) / (MANY - FEW) < BYTES_A_ROW
