"""The rows that select sets aside before its strategy: the order of the filters, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import DataError, StaleError, UsageError
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from codetune.store.manifest import read_manifest, write_manifest
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


def rescore(context: RunContext, values: list[dict[str, float]]) -> list[str]:
    """Puts other values into the scores, seals them again, and returns the ids of the rows."""
    path, manifest = context.run.scores, read_manifest(context.run.scores)
    assert manifest is not None
    rows = [{**json.loads(line), **new} for line, new in zip(path.read_text().splitlines(), values, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(path, replace(manifest, digest=context.digests.artefact(path)))
    return [row["id"] for row in rows]


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


def test_of_several_answers_to_one_instruction_the_likeliest_that_fits_is_kept(tmp_path: Path) -> None:
    said = {"a": "Add one.", "b": "Add  one.\n", "c": "Add one.", "broken": "Add one.", "d": "Add two."}
    answers = {name: f"def {name}(x):\n    return x\n" for name in said} | {"broken": "def broken(x):\nreturn 1\n"}
    project = make_small_world(tmp_path, 1)
    rows = [{"instruction": said[name], "output": answers[name]} for name in said]
    write_rows(tmp_path / "data.jsonl", rows)
    flags: dict[str, Any] = {"select__best_answer": True, "select__checks": ["parses"], "select__strategy": "ifd"}
    context = context_of(project, **flags, select__ratio=1.0, select__max_ifd=1.0)
    pipeline.score(context)
    # The likeliest answer of all does not parse, the next one is a mismatched pair.
    nll = {"broken": 0.1, "a": 0.2, "b": 0.5, "c": 0.4, "d": 3.0}
    ids = rescore(context, [{"nll_conditional": nll[name], "ifd": 1.5 if name == "a" else 0.5} for name in said])
    named = dict(zip(said, ids, strict=True))
    result = pipeline.select(context)
    why = {row["id"]: row["why"] for row in map(json.loads, context.run.excluded.read_text().splitlines())}
    assert why[named["b"]] == f"duplicate instruction of {named['c']}"
    assert why.keys() == {named[name] for name in ("a", "b", "broken")}
    assert result.refused["duplicate instruction"] == 1
    assert [part["filtered"] for part in result.facts["clusters"]] == [2]


def test_a_draw_of_best_answers_reads_scores_and_drops_no_mismatched_pair(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 1)
    rows = [{"instruction": f"Add {n // 2}.", "output": f"def add(x):\n    return x + {n}\n"} for n in range(6)]
    write_rows(tmp_path / "data.jsonl", rows)
    context = context_of(project, select__strategy="random", select__ratio=1.0, select__best_answer=True)
    with pytest.raises(StaleError, match=r"No scores yet .* Run: codetune score"):
        pipeline.select(context)
    assert SCORE.is_needed(context.project)
    pipeline.score(context)
    ids = rescore(context, [{"nll_conditional": 5.0 - n, "ifd": 200.0} for n in range(6)])
    pipeline.select(context)
    taken = {json.loads(line)["id"] for line in context.run.selection.read_text().splitlines()}
    assert taken == {ids[1], ids[3], ids[5]}


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
    (note,) = (note for note in SELECT.details(result).notes if note.startswith("not compared with"))
    assert note.endswith(
        "To fetch humaneval, name it in select.decontaminate. There is no file missing.jsonl: fix evaluate.benchmarks"
    )


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
