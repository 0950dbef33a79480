"""selection.report.json: what it says, where it is silent, and that it is part of the sealed selection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetune import render
from codetune.stages.select import SELECT
from codetune.stages.selection_report import DIAGNOSTICS, warnings_of
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows

ROWS = 60
FINE: dict[str, Any] = {
    "rows": 100,
    "refused": {"duplicate": 50},
    "clusters": [{"cluster": number, "rows": 50, "eligible": 40, "taken": 4} for number in range(2)],
    "ifd_length_correlation": 0.3,
    "mismatch_test": {"pairs": 256, "caught": 0.9, "estimated_mismatched": 0.1, "has_power": True},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a run with scores and embeddings."""
    project = make_small_world(tmp_path_factory.mktemp("reported"), ROWS)
    pipeline.score(context_of(project))
    pipeline.embed(context_of(project))
    return project


def report_of(context: RunContext) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(context.run.selection_report.read_text(encoding="utf-8"))
    return found


def test_the_report_adds_up(scored: Path) -> None:
    context = context_of(scored, select__ratio=0.5)
    result = pipeline.select(context)
    found = report_of(context)
    assert (found["rows"], found["taken"]) == (ROWS, result.rows)
    assert sum(part["taken"] for part in found["clusters"]) == found["taken"]
    assert all(sum(part["reasons"].values()) == part["set_aside"] for part in found["clusters"])
    assert found["clusters"] == json.loads(json.dumps(result.facts["clusters"]))
    assert found["instructions_cut"] == {"cut": 0, "rows": ROWS}
    assert 0 < found["cost"]["tokens_taken"] < found["cost"]["tokens"]
    assert found["cost"]["scorer_weights"] > 1000
    assert len(found["map"]["id"]) == ROWS


def test_json_has_the_diagnostics_without_the_map(scored: Path) -> None:
    document = render.stage(pipeline.select(context_of(scored, select__ratio=0.5))).document
    found = document[DIAGNOSTICS]
    assert found["novelsum"] is not None
    assert "map" not in found


def test_the_figures_fit_into_80_columns(scored: Path) -> None:
    result = pipeline.select(context_of(scored, select__ratio=0.5))
    lines = SELECT.details(result).notes
    assert any(line.startswith("diversity (NovelSum)") for line in lines)
    first = next(number for number, line in enumerate(lines) if line.startswith("rank correlation"))
    assert max(map(len, lines[first : first + 10])) <= 80


@pytest.mark.parametrize(
    ("strategy", "absent"),
    [
        ("random", {"ifd_length_correlation", "cluster_distance", "novelsum", "cost", "instructions_cut", "map"}),
        ("all", {"ifd_length_correlation", "cluster_distance", "novelsum", "cost", "instructions_cut", "map"}),
        ("ifd", {"cluster_distance", "novelsum", "instructions_cut", "map"}),
        ("kcenter", {"ifd_length_correlation", "cost"}),
    ],
)
def test_what_a_strategy_does_not_know_is_null_and_no_zero(scored: Path, strategy: str, absent: set[str]) -> None:
    context = context_of(scored, select__strategy=strategy, select__ratio=0.5)
    result = pipeline.select(context)
    found = report_of(context)
    told = {"ifd_length_correlation", "cluster_distance", "novelsum", "cost", "instructions_cut", "map"}
    assert {name for name in told if found[name] is None} == absent
    assert SELECT.details(result).notes


def test_the_same_rows_in_another_order_give_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    context = context_of(scored, select__ratio=0.5)
    pipeline.select(context)
    other = make_small_world(tmp_path, ROWS)
    write_rows(tmp_path / "data.jsonl", rows(ROWS)[::-1])
    again = context_of(other, select__ratio=0.5)
    for step in (pipeline.score, pipeline.embed, pipeline.select):
        step(again)
    assert context.run.selection_report.read_bytes() == again.run.selection_report.read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [lambda report: report.unlink(), lambda report: report.write_text("{}\n", encoding="utf-8")],
    ids=["lost", "changed"],
)
def test_a_report_that_is_changed_or_lost_makes_the_selection_stale_and_comes_back(
    scored: Path, spoil: Callable[[Path], object]
) -> None:
    context = context_of(scored, select__ratio=0.5)
    digest = pipeline.select(context)
    before = context.run.selection_report.read_bytes()
    spoil(context.run.selection_report)
    assert stage_status(context, SELECT).state == "stale"
    assert pipeline.select(context).rows == digest.rows
    assert context.run.selection_report.read_bytes() == before
    assert stage_status(context, SELECT).state == "done"


def test_a_selection_without_faults_has_no_warning() -> None:
    assert warnings_of(FINE, 2) == []


@pytest.mark.parametrize(
    ("fault", "asked", "told"),
    [
        ({}, 3, "1 of 3 clusters are empty"),
        ({"ifd_length_correlation": 0.51}, 2, "rank correlation 0.51): a selection by IFD prefers long answers"),
        ({"ifd_length_correlation": -0.6}, 2, "prefers short answers"),
        ({"refused": {"empty answer": 6}}, 2, "6.0 % of the rows are refused (6 empty answer)"),
        (
            {"mismatch_test": {"pairs": 256, "caught": 0.4, "estimated_mismatched": 0.1, "has_power": False}},
            2,
            "it would catch 40.0 % of 256 shuffled pairs",
        ),
        (
            {"clusters": [{"cluster": 7, "rows": 9, "eligible": 2, "taken": 0}, *FINE["clusters"]]},
            3,
            "no row is taken from cluster 7, of 9 rows there 2 are eligible",
        ),
        (
            {"clusters": [{"cluster": 7, "rows": 1, "eligible": 1, "taken": 0}, *FINE["clusters"]]},
            3,
            "of 1 row there 1 is eligible",
        ),
    ],
)
def test_what_smells_is_said_in_a_sentence(fault: dict[str, Any], asked: int, told: str) -> None:
    (sentence,) = warnings_of(FINE | fault, asked)
    assert told in sentence
