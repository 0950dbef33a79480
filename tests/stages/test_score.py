"""Scores that get values added: what is measured, what is kept, and what a later stage says without them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from codetune.model.likelihood import CausalScorer
from codetune.stages.score import SCORE
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows

OFF = {"score__empty_prompt": False}
ADDED = {"pmi", "nll_empty", "nll_shuffled", "shuffled_with"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of spans of each call of the scorer."""
    calls: list[int] = []
    token_nll = CausalScorer.token_nll

    def counted(self: CausalScorer, spans: Any) -> Any:
        calls.append(len(spans))
        return token_nll(self, spans)

    monkeypatch.setattr(CausalScorer, "token_nll", counted)
    return calls


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_with_and_without_the_empty_prompt_come_of_each_other_and_of_nothing_alike(
    tmp_path: Path, measured: list[int]
) -> None:
    project = make_small_world(tmp_path)
    on, off = context_of(project, score__shuffled_rows=9), context_of(project, **OFF)
    scores = on.run.scores
    pipeline.score(off)
    without = scores.read_bytes()
    assert sum(measured) == 120
    pipeline.score(on)
    assert sum(measured) == 120 + 60 + 9  # the passes that were missing
    extended = scores.read_bytes()
    for short, long in zip(lines(scores), map(json.loads, without.splitlines()), strict=True):
        assert {key: value for key, value in short.items() if key not in ADDED} == long
    pipeline.score(off)
    assert scores.read_bytes() == without
    assert sum(measured) == 189
    other = context_of(make_small_world(tmp_path / "fresh"), score__shuffled_rows=9)
    pipeline.score(other)
    assert other.run.scores.read_bytes() == extended


def test_the_differences_of_tokens_are_added_to_scores_and_taken_away_again(
    tmp_path: Path, measured: list[int]
) -> None:
    project = make_small_world(tmp_path, 20)
    plain, by_token = context_of(project), context_of(project, score__token_differences=True)
    scores = plain.run.scores
    pipeline.score(plain)
    without = scores.read_bytes()
    measured.clear()
    assert pipeline.score(by_token).reused == 0
    assert sum(measured) == 2 * 20  # the passes whose tokens were not kept
    for short, long in zip(map(json.loads, without.splitlines()), lines(scores), strict=True):
        assert {key: value for key, value in long.items() if key != "token_differences"} == short
        assert len(base64.b64decode(long["token_differences"])) == 4 * long["answer_tokens"]
    extended = scores.read_bytes()
    pipeline.score(plain)
    assert scores.read_bytes() == without
    assert sum(measured) == 2 * 20
    fresh = context_of(make_small_world(tmp_path / "fresh", 20), select__strategy="sifd")
    pipeline.score(fresh)
    assert fresh.run.scores.read_bytes() == extended


def test_a_strategy_without_need_of_tokens_finds_older_scores_done(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    pipeline.score(context_of(project))
    states = [stage_status(context_of(project, select__strategy=name), SCORE).state for name in ("mig", "sifd")]
    assert states == ["done", "stale"]


def test_rows_of_the_sample_name_the_row_whose_instruction_they_had(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 12), score__shuffled_rows=5)
    pipeline.score(context)
    found = {row["id"]: row for row in lines(context.run.scores)}
    sample = {row_id: row for row_id, row in found.items() if "nll_shuffled" in row}
    assert len(sample) == 5
    for row_id, row in sample.items():
        assert row["shuffled_with"] in sample
        assert row["shuffled_with"] != row_id


def test_added_rows_measure_nothing_of_the_older_rows_again(tmp_path: Path, measured: list[int]) -> None:
    project = make_small_world(tmp_path, 40)
    pipeline.score(context_of(project, score__shuffled_rows=8))
    before = {row["id"]: row for row in lines(context_of(project).run.scores)}
    measured.clear()
    write_rows(tmp_path / "data.jsonl", rows(50))
    context = context_of(project, score__shuffled_rows=8)
    assert pipeline.score(context).reused == 40
    after = {row["id"]: row for row in lines(context.run.scores)}
    assert {row_id: after[row_id] for row_id in before} == before
    entered = sum("nll_shuffled" in row for row_id, row in after.items() if row_id not in before)
    assert sum(measured) == 10 * 3 + entered


def test_rows_that_enter_the_sample_because_others_were_removed_get_one_pass(
    tmp_path: Path, measured: list[int]
) -> None:
    project = make_small_world(tmp_path, 40)
    pipeline.score(context_of(project, score__shuffled_rows=8))
    kept = sum("nll_shuffled" in row for row in lines(context_of(project).run.scores)[:10])
    measured.clear()
    write_rows(tmp_path / "data.jsonl", rows(10))
    context = context_of(project, score__shuffled_rows=8)
    pipeline.score(context)
    assert sum("nll_shuffled" in row for row in lines(context.run.scores)) >= 8
    assert 8 - kept <= sum(measured) <= 8
