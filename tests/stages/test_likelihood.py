"""The held-out rows where a command expects a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import StaleError, UsageError
from codetune.run_status import run_status
from codetune.stages.likelihood import EVALUATE_HOLDOUT, measure_holdout, read_likelihood, require_no_parts
from codetune.stages.stage import RunContext, StageRequest
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world

SETTINGS: dict[str, Any] = {"select__strategy": "random", "train__holdout": 8, "train__epochs": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_small_world(tmp_path_factory.mktemp("trained"), 40)
    context = context_of(project, **SETTINGS)
    pipeline.select(context)
    pipeline.train(context)
    return project


@pytest.fixture
def context(trained: Path) -> RunContext:
    return context_of(trained, **SETTINGS)


def test_the_tuned_model_has_the_loss_that_its_training_measured(context: RunContext) -> None:
    (base, tuned), (compared,) = measure_holdout(context, [])
    facts = json.loads((context.run.directory / "model.seal").read_text(encoding="utf-8"))["facts"]["holdout"]
    assert tuned["nats_per_token"] == pytest.approx(facts["loss"], rel=1e-6)
    assert tuned["rows"] == facts["rows"] == 8
    assert tuned["interval_95"][0] < tuned["nats_per_token"] < tuned["interval_95"][1]
    assert compared["models"] == ["base", "tuned"]
    assert compared["difference"] == pytest.approx(tuned["nats_per_token"] - base["nats_per_token"])
    assert compared["difference"] < 0


def test_a_loss_is_sealed_shown_by_status_and_taken_over_by_a_run_with_the_same_held_out_rows(
    trained: Path, context: RunContext
) -> None:
    measure_holdout(context, [])
    lines = {line.stage: line for line in run_status(context)}
    assert lines["holdout base"].state == lines["holdout tuned"].state == "done"
    assert lines["holdout base"].detail.endswith("nats a token")
    other = context_of(trained, **{**SETTINGS, "name": "other", "select__ratio": 0.7})
    pipeline.select(other)
    (base, *_), _ = measure_holdout(other, ["base"])
    assert base == read_likelihood(context.run.evaluation("holdout", "base"))
    assert json.loads((other.run.directory / "evaluation/holdout/base.json.seal").read_text())["facts"]["taken_from"]


def test_other_held_out_rows_make_a_loss_stale(trained: Path, context: RunContext) -> None:
    measure_holdout(context, ["base"])
    request = StageRequest(benchmark="holdout", label="base")
    assert stage_status(context, EVALUATE_HOLDOUT, request).state == "done"
    shorter = context_of(trained, **{**SETTINGS, "train__max_length": 64})
    assert "train.max_length 256" in stage_status(shorter, EVALUATE_HOLDOUT, request).why


def test_a_selection_without_held_out_rows_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 20), select__strategy="random")
    with pytest.raises(StaleError, match="No selection yet"):
        measure_holdout(context, ["base"])
    pipeline.select(context)
    with pytest.raises(StaleError, match=r"no rows are held out. .* Set train.holdout .* run: codetune select"):
        measure_holdout(context, ["base"])


@pytest.mark.parametrize("parts", [(5, []), (None, ["a"]), (None, [], Path("a.jsonl")), (None, [], None, True)])
def test_flags_about_tasks_and_samples_are_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="Leave them out"):
        require_no_parts(*parts)
