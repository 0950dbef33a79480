"""Held-out rows as part of select: on one side only, counted, sealed, and no part of anything that is selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import DataError
from codetune.stages.holdout import HELD_OUT
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows

UNSCORED = {"instruction": "Much. " * 60, "output": "x = 1"}  # the prompt leaves no room for the answer
DOCUMENTS = [*rows(39), UNSCORED]
ROWS = len(DOCUMENTS)
EVERY_FILTER: dict[str, Any] = {"select__deduplicate": "near", "select__checks": ["parses"]}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a run with scores and embeddings; one row has no score."""
    project = make_small_world(tmp_path_factory.mktemp("scored"), 1)
    write_rows(project.parent / "data.jsonl", DOCUMENTS)
    pipeline.score(context_of(project))
    pipeline.embed(context_of(project))
    return project


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]


def reasons(context: RunContext) -> dict[str, str]:
    lines = map(json.loads, context.run.excluded.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["why"] for row in lines}


@pytest.mark.parametrize("strategy", ["ifd_cluster", "random"])
def test_held_out_rows_are_in_their_file_and_nowhere_else(scored: Path, strategy: str) -> None:
    context = context_of(scored, train__holdout=10, select__strategy=strategy)
    result = pipeline.select(context)
    held, why = ids_in(context.run.holdout), reasons(context)
    assert result.refused[HELD_OUT] == len(held) == 10
    assert {row for row, reason in why.items() if reason == HELD_OUT} == set(held)
    assert not set(held) & set(ids_in(context.run.selection))
    assert len(why) + result.rows == ROWS
    assert sum(result.refused.values()) + sum(cluster["eligible"] for cluster in result.facts["clusters"]) == ROWS


def test_a_held_out_row_without_a_score_is_counted_once(scored: Path) -> None:
    by_scores = {"select__strategy": "ifd"}
    context = selected(scored, 0, **by_scores)
    (unscored,) = (row for row, why in reasons(context).items() if why.startswith("refused"))
    seed = next(
        seed for seed in range(50) if unscored in ids_in(selected(scored, 20, seed=seed, **by_scores).run.holdout)
    )
    context = context_of(scored, train__holdout=20, seed=seed, **by_scores)
    assert reasons(context)[unscored] == HELD_OUT
    assert not [reason for reason in pipeline.select(context).refused if "no room" in reason]


def selected(project: Path, holdout: float, **flags: Any) -> RunContext:
    context = context_of(project, train__holdout=holdout, **flags)
    pipeline.select(context)
    return context


def test_the_strategy_and_its_filters_do_not_change_what_is_held_out(scored: Path) -> None:
    plain = ids_in(selected(scored, 10).run.holdout)
    assert ids_in(selected(scored, 0.25, select__strategy="all", **EVERY_FILTER).run.holdout) == plain == sorted(plain)
    assert ids_in(selected(scored, 10, select__strategy="random", seed=1).run.holdout) != plain


def test_the_selection_is_that_of_a_data_set_without_the_held_out_rows(scored: Path, tmp_path: Path) -> None:
    by_scores = {"select__strategy": "ifd"}  # because the vectors of `hashing` depend on all rows
    context = selected(scored, 10, **by_scores)
    held = set(ids_in(context.run.holdout))
    left = [row for row, row_id in zip(DOCUMENTS, ids_in(context.run.examples), strict=True) if row_id not in held]
    other = make_small_world(tmp_path, 1)
    write_rows(tmp_path / "data.jsonl", left)
    pipeline.score(context_of(other))
    assert ids_in(selected(other, 0, **by_scores).run.selection) == ids_in(context.run.selection)


def test_without_holdout_the_file_is_gone_and_the_selection_as_it_was(scored: Path) -> None:
    before = selected(scored, 0).run.selection.read_bytes()
    assert selected(scored, 10).run.selection.read_bytes() != before
    after = selected(scored, 0).run
    assert after.selection.read_bytes() == before
    assert not after.holdout.exists()


def test_held_out_rows_that_were_changed_make_the_selection_stale(scored: Path) -> None:
    context = selected(scored, 10)
    assert stage_status(context, SELECT).state == "done"
    context.run.holdout.write_text("", encoding="utf-8")
    assert "was changed after codetune wrote it" in stage_status(context, SELECT).why


def test_more_rows_than_there_are_is_an_error_that_leaves_the_selection_as_it_is(scored: Path) -> None:
    before = selected(scored, 0).run.selection.read_bytes()
    with pytest.raises(DataError, match=r"train.holdout is 40, and the data set has 40 usable rows"):
        selected(scored, 40)
    assert context_of(scored).run.selection.read_bytes() == before


def test_near_duplicates_are_on_one_side_whatever_deduplicate_says(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 1)
    body = "\n".join(f"    word_{n} = {n}" for n in range(40))
    twins = [
        {"instruction": f"Task {n}.", "output": f"def f{n}():\n{body.replace('word', f'w{n}')}\n    return {last}\n"}
        for n in range(10)
        for last in (1, 2)
    ]
    write_rows(tmp_path / "data.jsonl", twins)
    context = selected(project, 8, select__strategy="all", select__deduplicate="none")
    held = map(json.loads, context.run.holdout.read_text(encoding="utf-8").splitlines())
    names = [row["messages"][0]["content"] for row in held]
    assert len(names) == 8
    assert all(names.count(name) == 2 for name in names)
