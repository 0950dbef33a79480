"""The plan of a small world: what it finds, what would fail later, and that it holds after the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from codetune.console import CommandResult
from codetune.errors import UsageError
from codetune.project.file import read_project
from codetune.report import plan_text
from codetune.report.plan import make_plan
from codetune.report.plan_parts import PlanOptions, RunPlan
from codetune.stages.runner import read_context
from tests import pipeline
from tests.data.test_own_template import NO_THOUGHTS
from tests.small_world import context_of, make_small_world


def test_a_plan_finds_rows_steps_memory_and_cost_and_writes_nothing(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found, shown = planned(project, model__dtype="auto")
    assert sorted(tmp_path.rglob("*")) == before
    assert (shown.exit_status, found.failures) == (0, [])
    assert found.rows
    assert found.steps
    assert found.memory
    assert found.cost
    assert found.example
    assert (found.rows.rows, found.rows.tokenised, found.steps.rows, found.steps.steps) == (60, 60, 24, 6)
    assert found.steps.padding_rates["dynamic_pack"] == 0 < found.steps.padding_rates["dynamic_pad"]
    assert found.memory.memory.total > 16 * 1000
    assert found.tasks == {"tasks.jsonl": 3}
    assert json.loads(json.dumps(shown.document)).keys() >= {"rows", "training", "memory", "time", "cost", "failures"}


def test_the_learned_tokens_of_the_row_that_is_shown_are_its_answer_and_the_eos(tmp_path: Path) -> None:
    found, _ = planned(make_small_world(tmp_path))
    assert found.example
    (asked, _, context), (learned, tokens, answer) = found.example.pieces
    assert (asked, learned) == (False, True)
    assert context.endswith("\n### Response:\n")
    assert answer.startswith("def add_")
    assert answer.endswith("</s>")
    assert tokens > 10


def test_without_a_record_a_probe_or_a_card_the_time_is_unknown(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    found, shown = planned(project)
    assert found.time
    assert found.time.rate is None
    assert "unknown" in text_of(shown)
    estimated, shown = planned(project, price=2.0, card="H100", model__dtype="bfloat16", launch__processes=4)
    assert estimated.time
    assert estimated.time.rate
    assert estimated.time.train_seconds
    assert estimated.time.score_seconds
    assert (estimated.time.rate.is_measured, estimated.time.rate.flops_per_second) == (False, 4 * 0.4 * 989e12)
    hours = (estimated.time.train_seconds + estimated.time.score_seconds) / 3600
    assert estimated.time.price == pytest.approx(hours * 4 * 2.0)
    assert "time (estimated)" in text_of(shown)


def test_a_probe_measures_the_first_steps(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    found, _ = planned(project, probe=True)
    assert found.failures == []
    assert found.time
    assert found.time.rate
    assert found.time.rate.is_measured
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="--probe measures this machine, and --gpu H100 plans for another"):
        planned(project, card="H100", probe=True)


def test_everything_that_would_fail_later_is_listed_at_once(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "tasks.jsonl").write_text("{}\n", encoding="utf-8")
    found, shown = planned(project, train__max_length=4096, evaluate__k=[5], train__max_steps=1)
    assert shown.exit_status == 2
    listed = "\n".join(found.failures)
    for fault in ("holds no weights", "tasks.jsonl", "generate.samples_per_task"):
        assert fault in listed
    assert shown.document["failures"] == found.failures
    assert found.rows
    assert found.rows.rows == 60


TURNS = [{"role": "user", "content": "Add 1."}, {"role": "assistant", "content": "<think>\nWell.\n</think>\n\n1"}]


@pytest.mark.parametrize(
    ("row", "flags", "told"),
    [
        (TURNS * 2, {"model__chat_format": "tokenizer"}, r"drops 1 of 2 rows \(50 %\): 1 .*Set train.learn: last$"),
        (TURNS[:1], {}, r"1 of 2 rows are refused \(50.0 %\): 1 does not end with an assistant"),
        (TURNS, {"train__max_length": 45}, r"train drops 1 of 2 rows \(50 %\).*Raise train.max_length"),
        (TURNS, {"train__max_length": 60}, r"1 of 2 rows are longer than 60 tokens: they lose"),
        (TURNS, {"select__count": 2, "train__holdout": 1}, r"train.holdout leaves 1 of 2 rows to"),
        (TURNS, {"card": "0GB"}, r"takes 0.* GB of each GPU"),
    ],
)
def test_the_headline_tells_what_works_and_is_hardly_meant(
    tmp_path: Path, row: list[dict[str, str]], flags: dict[str, Any], told: str
) -> None:
    project = make_small_world(tmp_path, 1)
    (tmp_path / "base" / "chat_template.jinja").write_text(NO_THOUGHTS, encoding="utf-8")
    with (tmp_path / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": row}))
    found, shown = planned(project, **{"select__strategy": "random", "select__ratio": 1.0, **flags})
    assert any(re.search(told, doubt) for doubt in found.doubts), (found.doubts, found.failures)
    assert shown.title.startswith("plan: nothing is known to fail, and")


def test_a_share_that_takes_no_row_would_fail(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 30)
    found, shown = planned(project, select__ratio=0.01)
    assert found.failures == ["select.ratio is 0.01, which is no row of 30. Expected: one at least. Raise select.ratio"]
    assert (found.steps, shown.exit_status) == (None, 2)
    found, _ = planned(project, train__holdout=28)
    assert "no row of 2 that train.holdout leaves" in found.failures[0]


def test_rows_that_are_too_long_for_the_model_would_fail(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 8)
    config = tmp_path / "base" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 16}
    config.write_text(json.dumps(settings), encoding="utf-8")
    found, _ = planned(project)
    assert any("The longest sample has" in failure for failure in found.failures)


def test_a_data_set_that_cannot_be_read_leaves_the_rest_of_the_plan(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"other": 1}\n', encoding="utf-8")
    found, shown = planned(project)
    assert (found.rows, shown.exit_status) == (None, 2)
    assert "data.jsonl" in found.failures[0]
    assert found.tasks == {"tasks.jsonl": 3}


def test_several_data_sets_are_counted_by_their_names(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    half = {"name": "half", "path": "data.jsonl", "weight": 0.5}
    found, shown = planned(project, dataset=[half, {"name": "rest", "path": "data.jsonl"}])
    assert found.rows
    assert found.rows.sources == {
        "half": {"rows": 30, "refused": 0, "left_by_weight": 30},
        "rest": {"rows": 30, "refused": 30, "duplicates_of": {"half": 30}},
    }
    assert "half: 30 rows, 0 refused, 30 left by its weight" in text_of(shown)
    found, _ = planned(project, dataset=[{**half, "weight": 1.0}, {"name": "again", "path": "data.jsonl"}])
    assert "The data set again gives no row" in found.doubts


def test_a_plan_that_does_not_fit_names_the_nearest_that_does(tmp_path: Path) -> None:
    """A card without memory for the weights themselves: nothing fits. One with some: smaller micro-batches do."""
    project = make_small_world(tmp_path)
    with pytest.raises(UsageError, match="no such GPU is known"):
        planned(project, card="abacus")
    found, _ = planned(project, card="A100")
    assert found.memory
    assert found.memory.fits
    found, shown = planned(project, card="0GB")
    assert found.memory
    assert (found.memory.fits, found.memory.nearest) == (False, None)
    assert "nothing fits" in text_of(shown)


def test_after_the_run_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    for stage in (pipeline.score, pipeline.embed, pipeline.select, pipeline.train):
        stage(context_of(project, train__pad_mode="dynamic_pad"))
    found, shown = planned(project, train__pad_mode="dynamic_pad")
    measured = {entry.what: entry for entry in found.measured}
    for what in ("rows", "steps", "padding rate"):
        assert measured[what].planned == pytest.approx(measured[what].measured)
    assert measured["training, seconds"].planned is None  # the record of this very run is no plan
    assert "planned and measured" in text_of(shown)
    again, _ = planned(project, train__epochs=2)
    assert again.time
    assert again.time.rate
    assert again.time.rate.basis.startswith("measured in")
    assert any("--replace" in failure for failure in again.failures)
    elsewhere, _ = planned(project, card="H100", model__dtype="bfloat16")
    assert elsewhere.time
    assert elsewhere.time.rate
    assert elsewhere.time.rate.basis == "an estimate: 40.0 % of what the data sheet of H100 says"


def planned(
    project: Path, price: float | None = None, card: str | None = None, probe: bool = False, **flags: object
) -> tuple[RunPlan, CommandResult]:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    loaded = read_project(project, [], given)
    found = make_plan(read_context(loaded), PlanOptions(price, card, probe))
    return found, plan_text.plan(found, loaded)


def text_of(result: CommandResult) -> str:
    return "\n".join([result.title, *result.notes, *(f"{part.title} {part.notes}" for part in result.more)])
