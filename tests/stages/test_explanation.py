"""`codetune select --explain ID`: why one row was taken or not, in numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune import render
from codetune.errors import InputError, StaleError
from codetune.stages.explanation import explain_row
from codetune.stages.stage import RunContext
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows

LONG = "print('one of many words that stand here so that two rows have nearly all shingles in common')\n"
NEAR = [{"instruction": "Print.", "output": f"{LONG}{LONG}print({word!r})\n"} for word in ("the end", "an end")]


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    project = make_small_world(tmp_path_factory.mktemp("selected"), 1)
    write_rows(project.parent / "data.jsonl", [*rows(12), *NEAR, rows(1)[0]])
    context = context_of(project, select__deduplicate="near", select__clusters=1, select__ratio=0.5)
    pipeline.score(context)
    pipeline.embed(context)
    pipeline.select(context)
    return context


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_ranked_among_the_eligible_of_its_cluster(selected: RunContext) -> None:
    taken = documents(selected.run.selection)
    for rank, row in enumerate(taken):  # in the order of falling IFD
        found = explain_row(selected, row["id"])
        assert (found.is_taken, found.harder, found.taken) == (True, rank, len(taken))
        assert found.lowest_taken == taken[-1]["ifd"]
    (other, *_) = (row for row in documents(selected.run.excluded) if row["why"] == "not taken")
    found = explain_row(selected, other["id"])
    assert not found.is_taken
    assert found.harder is not None
    assert found.harder >= len(taken)
    assert found.eligible == len(taken) + sum(row["why"] == "not taken" for row in documents(selected.run.excluded))


@pytest.mark.parametrize(
    ("strategy", "title"),
    [("length", "answer tokens"), ("perplexity", "NLL given the instruction"), ("sifd", "S-IFD"), ("random", None)],
)
def test_a_row_is_ranked_by_what_the_strategy_looks_at(selected: RunContext, strategy: str, title: str | None) -> None:
    project = selected.project.root / "codetune.yaml"
    asked = {"select__strategy": strategy, "score__token_differences": True, "select__clusters": 1, "name": strategy}
    context = context_of(project, **asked, select__ratio=0.5)
    for stage in (pipeline.score, pipeline.embed, pipeline.select):
        stage(context)
    for row in documents(context.run.selection):
        found = explain_row(context, row["id"])
        notes = "\n".join(render.explanation(found).notes)
        if title is None:
            assert (found.harder, found.lowest_taken) == (None, None)
            assert "IFD" not in notes
        else:
            assert f"rank {(found.harder or 0) + 1} of" in row["why"]
            assert f"{found.harder} of the eligible have a higher {title}" in notes
    first, *_ = (row for row in documents(context.run.excluded) if row["why"] == "not taken")
    found = explain_row(context, first["id"])
    assert found.value is None or found.value <= (found.lowest_taken or 0)


def test_a_near_duplicate_is_told_with_its_jaccard_index(selected: RunContext) -> None:
    (row, *_) = (row for row in documents(selected.run.excluded) if row["why"].startswith("near duplicate"))
    found = explain_row(selected, row["id"])
    assert found.jaccard is not None
    assert found.jaccard >= 0.8
    shown = render.explanation(found)
    assert shown.title == f"{row['id']}: {row['why']}"
    assert f"Jaccard index of the two: {found.jaccard:.4f}" in shown.notes
    assert shown.document["taken"] is False


def test_a_row_without_an_id_is_known_by_its_place(selected: RunContext) -> None:
    found = explain_row(selected, "data.jsonl:15")
    first = documents(selected.run.examples)[0]["id"]
    assert found.row["why"] == f"duplicate of {first}"
    assert (found.text, found.harder) == ("", None)


def test_a_row_that_does_not_exist_and_a_selection_that_is_not_made_are_errors(
    selected: RunContext, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"knows no row 'nothing'.*Fix --explain"):
        explain_row(selected, "nothing")
    with pytest.raises(StaleError, match="Run: codetune select"):
        explain_row(context_of(make_small_world(tmp_path, 1)), "nothing")
