"""The rows that select sets aside before its strategy: the order of the filters, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import DataError, UsageError
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world, write_rows

SENTENCE = "Check whether every number of a given list lies strictly below the limit that was passed to the function."
LONG = "print('one of many words that stand here so that two rows have nearly all shingles in common')\n"
ROWS = {
    "plain": ("Add one.", "def add(x):\n    return x + 1\n"),
    "near": ("Print.", f"{LONG}{LONG}print('and the end')\n"),
    "near too": ("Print.", f"{LONG}{LONG}print('and an end')\n"),
    "leak": (SENTENCE, "def below(numbers, limit):\n    return all(n < limit for n in numbers)\n"),
    "broken leak": (f"{SENTENCE} Quickly!", "def below(numbers, limit):\nreturn True\n"),
    "broken": ("Add two.", "def add(x):\nreturn x + 2\n"),
    "unknown name": ("Add many.", "def add(x):\n    return x + amount\n"),
    "wrong example": ("Add three.", 'def add(x):\n    """\n    >>> add(1)\n    4\n    """\n    return x + 2\n'),
}
TASK = {
    "task_id": "Own/0",
    "prompt": SENTENCE,
    "entry_point": "below",
    "canonical_solution": "def below(numbers, limit): return all(n < limit for n in numbers)",
    "base_input": [[[1], 2]],
    "plus_input": [],
    "atol": 0,
    "contract": "",
}
FILTERS: dict[str, Any] = {
    "select__strategy": "all",
    "select__deduplicate": "near",
    "select__decontaminate": "auto",
    "select__checks": ["parses", "names", "examples"],
}
NONE: dict[str, Any] = {"select__deduplicate": "none", "select__decontaminate": [], "select__checks": []}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made = make_small_world(tmp_path, 1)
    write_rows(tmp_path / "data.jsonl", [{"instruction": said, "output": answer} for said, answer in ROWS.values()])
    write_rows(tmp_path / "tasks.jsonl", [TASK])
    return made


def taken_and_why(context: RunContext) -> tuple[set[str], dict[str, str]]:
    """The names of the rows that were taken, and why each other row was not."""
    names = {row[1]: name for name, row in ROWS.items()}
    lines = map(json.loads, context.run.examples.read_text(encoding="utf-8").splitlines())
    by_id = {row["id"]: names[row["messages"][-1]["content"]] for row in lines}
    taken = map(json.loads, context.run.selection.read_text(encoding="utf-8").splitlines())
    others = map(json.loads, context.run.excluded.read_text(encoding="utf-8").splitlines())
    return {by_id[row["id"]] for row in taken}, {by_id[row["id"]]: row["why"] for row in others}


def test_every_filter_sets_rows_aside_with_its_reason_and_the_first_one_that_holds_is_told(project: Path) -> None:
    context = context_of(project, **FILTERS)
    result = pipeline.select(context)
    taken, why = taken_and_why(context)
    (repeated,) = {"near", "near too"} - taken
    assert taken == {"plain", "near", "near too"} - {repeated}
    assert why.pop(repeated).startswith("near duplicate of ")
    assert why == {
        "leak": "leak of Own/0",
        "broken leak": "leak of Own/0",
        "broken": "check parses: line 2: expected an indented block after function definition on line 1",
        "unknown name": "check names: nothing defines amount",
        "wrong example": "check examples: add(1) gives 3, not 4",
    }
    assert result.refused == {
        "near duplicate": 1,
        "leak": 2,
        "check parses": 1,
        "check names": 1,
        "check examples": 1,
    }
    assert "Own" not in result.facts
    assert (
        SELECT.details(result).notes[-1] == "no row that is left holds a prompt or a solution of tasks.jsonl (1 tasks)"
    )


def test_without_filters_every_row_is_left(project: Path) -> None:
    context = context_of(project, **{**FILTERS, **NONE})
    assert pipeline.select(context).rows == len(ROWS)
    assert taken_and_why(context) == (set(ROWS), {})


def test_a_draw_is_of_the_rows_that_are_left(project: Path) -> None:
    flags = {**FILTERS, "select__strategy": "random"}
    assert pipeline.select(context_of(project, **flags, select__ratio=1.0)).rows == 2
    of_all = context_of(project, **flags, select__ratio=0.15, select__ratio_of="all")
    assert pipeline.select(of_all).rows == 1  # floor(8 * 0.15)


def test_a_benchmark_that_is_not_at_hand_is_named_and_nothing_is_fetched(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HUMANEVAL_OVERRIDE_PATH", raising=False)
    monkeypatch.setattr("evalplus.data.utils.CACHE_DIR", str(tmp_path / "nowhere"))
    context = context_of(project, **FILTERS, evaluate__benchmarks=["humaneval", "missing.jsonl", "tasks.jsonl"])
    result = pipeline.select(context)
    assert result.facts["not_at_hand"] == ["humaneval", "missing.jsonl"]
    assert result.facts["decontaminated"] == {"tasks.jsonl": 1}
    assert any(note.startswith("not compared with humaneval, missing.jsonl") for note in SELECT.details(result).notes)


def test_a_benchmark_that_comes_later_makes_no_selection_stale_unless_it_is_named(project: Path) -> None:
    pipeline.select(context_of(project, **FILTERS))
    write_rows(project.parent / "tasks.jsonl", [{**TASK, "prompt": "Another task."}])
    assert stage_status(context_of(project, **FILTERS), SELECT).state == "done"
    named = {**FILTERS, "select__decontaminate": ["tasks.jsonl"]}
    assert pipeline.select(context_of(project, **named)).refused.get("leak") is None
    write_rows(project.parent / "tasks.jsonl", [TASK])
    assert pipeline.select(context_of(project, **named)).refused["leak"] == 2


@pytest.mark.parametrize(
    ("named", "error", "told"),
    [
        ("missing.jsonl", UsageError, r"There is no file 'missing\.jsonl'"),
        ("data.jsonl", DataError, r"data\.jsonl:1"),
    ],
)
def test_a_named_benchmark_that_cannot_be_read_is_an_error(
    project: Path, named: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        pipeline.select(context_of(project, **{**FILTERS, "select__decontaminate": [named]}))
