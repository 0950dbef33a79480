"""The shipped base model reads instructions: it tells answers that belong to them from answers that do not."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from codetune.demo.demo_project import SHIPPED_BASE, DemoRow, draw_rows
from codetune.model.likelihood import CausalScorer
from codetune.model.load import load_model, load_tokenizer
from codetune.project.sections import Model, Scoring
from codetune.records import Example, Message, Score
from codetune.selection.score import score_tokens, tokenize

ROWS_OF_A_KIND = 40


@pytest.fixture(scope="module")
def ifd() -> dict[str, list[float]]:
    """IFD of some rows of each kind, from a world of no demo's seed."""
    rows = list(_some_of_each(draw_rows(Random("a world for this test"))))
    examples = [Example(row.id, (Message("user", row.problem), Message("assistant", row.solution)), "") for row in rows]
    model = load_model(SHIPPED_BASE, Model(dtype="float32"), "cpu")
    scorer = CausalScorer(model, 4096)
    tokenized = tokenize(examples, load_tokenizer(SHIPPED_BASE), scorer.window, Scoring(max_length=512), {}, {})
    scores = score_tokens(tokenized, scorer)
    kinds: dict[str, list[float]] = {}
    for row, score in zip(rows, scores, strict=True):
        assert isinstance(score, Score)
        kinds.setdefault(row.kind, []).append(score.ifd)
    return kinds


def test_mismatched_rows_are_at_1_or_above_and_good_rows_below(ifd: dict[str, list[float]]) -> None:
    assert sum(value >= 1 for value in ifd["mismatched"]) > 0.95 * ROWS_OF_A_KIND
    assert sum(value < 1 for value in ifd["trivial"] + ifd["composed"]) > 0.95 * 2 * ROWS_OF_A_KIND


def test_compositions_are_harder_than_trivial_rows(ifd: dict[str, list[float]]) -> None:
    assert sum(ifd["composed"]) > sum(ifd["trivial"])


def _some_of_each(rows: list[DemoRow]) -> Iterator[DemoRow]:
    for kind in ("trivial", "composed", "mismatched"):
        yield from [row for row in rows if row.kind == kind][:ROWS_OF_A_KIND]
