"""Results as documents and tables, by what the contract says of `--json`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codetune import presentation
from codetune.journey import Line
from codetune.pipeline import StageResult

STAGE_KEYS = ["stage", "state", "rows", "reused", "refused", "artefact", "seconds", "overrides"]


def test_the_document_of_a_stage_has_exactly_the_keys_of_the_contract() -> None:
    document = presentation.stage(a_result()).document
    assert list(document) == STAGE_KEYS
    assert json.loads(json.dumps(document)) == {
        "stage": "score",
        "state": "done",
        "rows": 1200,
        "reused": 200,
        "refused": {"duplicate": 3, "empty answer": 1},
        "artefact": "runs/a/scores.jsonl",
        "seconds": 1.25,
        "overrides": {"select.ratio": 0.2},
    }


def test_a_shard_that_is_not_the_last_names_no_artefact_as_if_it_were_there() -> None:
    title = presentation.stage(replace(a_result(), state="partial")).title
    assert title == "score: partial, 1,200 rows so far; runs/a/scores.jsonl follows with the last shard"


def test_a_stage_tells_what_was_refused_reused_and_by_flag() -> None:
    shown = presentation.stage(a_result())
    assert shown.title == "score: done, 1,200 rows in runs/a/scores.jsonl"
    assert shown.notes == [
        "1.2 s, 200 rows found done",
        "refused: 3 duplicate, 1 empty answer",
        "by flag: select.ratio=0.2",
    ]


def test_a_stage_that_refused_nothing_says_nothing_of_it() -> None:
    shown = presentation.stage(a_result(reused=0, refused={}, overrides={}))
    assert shown.notes == ["1.2 s"]


def test_facts_of_a_stage_are_no_part_of_its_document() -> None:
    assert list(presentation.stage(a_result(stage="sanitize", facts=SANITIZED)).document) == STAGE_KEYS


def test_sanitize_tells_what_it_changed() -> None:
    assert "2 changed, 1 do not parse" in presentation.stage(a_result(stage="sanitize", facts=SANITIZED)).notes


def test_embed_tells_how_many_instructions_were_cut() -> None:
    notes = presentation.stage(a_result(stage="embed", facts={"cut": 2})).notes
    assert "2 instructions are longer than the encoder's window and were cut" in notes


def test_select_shows_a_row_per_cluster() -> None:
    clusters = [
        {"cluster": n, "rows": 10, "refused": 1, "dropped": 2, "eligible": 7, "taken": n, "ifd_quantiles": None}
        for n in range(2)
    ]
    shown = presentation.stage(a_result(stage="select", facts={"clusters": clusters}))
    assert shown.columns == ("cluster", "rows", "refused", "dropped by IFD", "eligible", "taken")
    assert shown.rows == [["0", "10", "1", "2", "7", "0"], ["1", "10", "1", "2", "7", "1"]]


@pytest.mark.parametrize(("loss", "told"), [(0.51234, ", last loss 0.5123"), (None, "")])
@pytest.mark.parametrize(
    ("memory", "share", "told_of_gpu"),
    [
        (None, None, ""),
        (2_500_000_000, None, ", peak GPU memory 2.50 GB"),
        (2_500_000_000, 0.456, ", peak GPU memory 2.50 GB, 45.6 % of the cards' peak arithmetic"),
    ],
)
def test_train_tells_steps_tokens_padding_time_memory_and_what_was_lost(
    loss: float | None, told: str, memory: int | None, share: float | None, told_of_gpu: str
) -> None:
    facts = {
        "steps": 7,
        "tokens": 12345,
        "padding_rate": 0.25,
        "last_loss": loss,
        "seconds": 1234.56,
        "peak_memory_bytes": memory,
        "peak_share": share,
        "truncated_rows": 3,
        "lost_tokens": 4000,
        "lost_share": 0.125,
    }
    assert presentation.stage(a_result(stage="train", facts=facts)).notes[3:] == [
        f"7 steps, 12,345 tokens, padding 25.0 %{told}",
        f"1,234.6 s in its steps{told_of_gpu}",
        "3 rows were truncated, 4,000 tokens lost (12.5 % of all)",
    ]


def test_one_model_is_its_own_document() -> None:
    report = a_report("base")
    assert presentation.evaluation([report], []).document == report


def test_several_models_come_as_a_list_with_the_comparison_beside_it() -> None:
    reports = [a_report("base"), a_report("tuned")]
    document = presentation.evaluation(reports, [COMPARED]).document
    assert document == {"models": reports, "comparison": [COMPARED]}


def test_figures_are_per_cent_with_one_decimal_and_have_their_interval() -> None:
    shown = presentation.evaluation([a_report("base")], [])
    assert shown.columns == ["benchmark", "model", "tasks", "base pass@1", "plus pass@1"]
    assert shown.rows == [["humaneval", "base", "164 of 164", "61.6 % (54.0 to 68.7)", "53.0 % (45.4 to 60.5)"]]


def test_every_k_has_its_columns() -> None:
    report = a_report("base")
    for suite in ("base", "plus"):
        report["pass_at_k"][suite]["pass@10"] = 0.9
        report["interval_95"][suite]["pass@10"] = [0.8, 1.0]
    assert presentation.evaluation([report], []).columns[3:] == [
        *("base pass@1", "plus pass@1"),
        *("base pass@10", "plus pass@10"),
    ]


def test_what_one_task_is_worth_and_the_sandbox_are_told() -> None:
    assert presentation.evaluation([a_report("base")], []).notes == [
        "points that one task is worth: of humaneval (164) 0.61; sandbox: process"
    ]


def test_what_one_task_is_worth_is_told_of_every_benchmark_once() -> None:
    reports = [a_report(model, name) for name in ("humaneval", "mbpp") for model in ("base", "tuned")]
    assert presentation.evaluation(reports, []).notes == [
        "points that one task is worth: of humaneval (164) 0.61, of mbpp (378) 0.26; sandbox: process"
    ]


def test_a_comparison_is_a_sentence() -> None:
    notes = presentation.evaluation([a_report("base"), a_report("tuned")], [COMPARED]).notes
    assert notes[-1].startswith("humaneval, base against tuned")
    assert "3 tasks solved by base alone, 21 by tuned alone (exact McNemar p = 0.00028)" in notes[-1]


def test_comparisons_on_two_benchmarks_can_be_told_apart() -> None:
    reports = [a_report(model, name) for name in ("humaneval", "mbpp") for model in ("base", "tuned")]
    first, second = presentation.evaluation(reports, [COMPARED, {**COMPARED, "benchmark": "mbpp"}]).notes[1:]
    assert first != second


def test_a_run_shows_its_stages_where_nothing_was_evaluated() -> None:
    shown = presentation.journey([a_result(), a_result(stage="embed", refused={})], [])
    assert [list(stage) for stage in shown.document["stages"]] == [STAGE_KEYS, STAGE_KEYS]
    assert (shown.document["models"], shown.document["comparison"]) == ([], [])
    assert shown.rows == [["score", "done", "1,200", "3 duplicate, 1 empty answer"], ["embed", "done", "1,200", ""]]


def test_a_run_shows_its_figures_and_what_each_stage_took() -> None:
    reports = [a_report("base"), a_report("tuned")]
    shown = presentation.journey([a_result(), *reports], [COMPARED])
    assert shown.document["models"] == reports
    assert shown.document["comparison"] == [COMPARED]
    assert [row[1] for row in shown.rows] == ["base", "tuned"]
    assert "time: score 1.2 s" in shown.notes


def test_status_tells_the_next_command_that_is_needed() -> None:
    lines = [
        Line("score", "not needed", "select.strategy is all", ""),
        Line("select", "done", "5 rows", "codetune select"),
        Line("train", "stale", "learning rate", "codetune train"),
        Line("humaneval base", "missing", "", "codetune eval humaneval --model base"),
    ]
    shown = presentation.status(lines)
    assert shown.document["next"] == "codetune train"
    assert shown.document["stages"][0] == {"stage": "score", "state": "not needed", "detail": "select.strategy is all"}
    assert shown.notes == ["next: codetune train"]


def test_status_says_when_everything_is_done() -> None:
    shown = presentation.status([Line("select", "done", "5 rows", "codetune select")])
    assert (shown.document["next"], shown.notes) == (None, ["everything is done"])


SANITIZED = {"changed": 2, "not_parsing": 1}
COMPARED: dict[str, Any] = {
    "benchmark": "humaneval",
    "models": ["base", "tuned"],
    "tasks": 164,
    "base": {"only_first": 3, "only_second": 21, "p_value": 0.000277},
    "plus": {"only_first": 2, "only_second": 20, "p_value": 0.0001},
}


def a_result(**changes: Any) -> StageResult:
    settings: dict[str, Any] = {
        "stage": "score",
        "state": "done",
        "rows": 1200,
        "reused": 200,
        "refused": {"duplicate": 3, "empty answer": 1},
        "artefact": Path("runs/a/scores.jsonl"),
        "seconds": 1.25,
        "overrides": {"select.ratio": 0.2},
    }
    return StageResult(**{**settings, **changes})


def a_report(model: str, benchmark: str = "humaneval") -> Any:
    tasks = {"humaneval": 164, "mbpp": 378}[benchmark]
    return {
        "benchmark": benchmark,
        "model": model,
        "sandbox": "process",
        "tasks": tasks,
        "tasks_in_benchmark": tasks,
        "samples": tasks,
        "pass_at_k": {"base": {"pass@1": 0.616}, "plus": {"pass@1": 0.53}},
        "interval_95": {"base": {"pass@1": [0.54, 0.687]}, "plus": {"pass@1": [0.454, 0.605]}},
        "verdicts": {"HumanEval/0": [{"base": "pass", "plus": "fail"}]},
    }
