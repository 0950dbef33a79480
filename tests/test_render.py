"""Results as documents and tables, by what the contract says of `--json`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from codetune import render
from codetune.benchmark.likelihood import compare_likelihoods, report_likelihood
from codetune.run_status import StatusLine
from codetune.stages.stage import StageResult

STAGE_KEYS = ["stage", "state", "rows", "reused", "refused", "artefact", "seconds", "overrides"]


def test_the_document_of_a_stage_has_exactly_the_keys_of_the_contract() -> None:
    document = render.stage(a_result()).document
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
    title = render.stage(replace(a_result(), state="partial")).title
    assert title == "score: partial, 1,200 rows so far; the last shard to finish writes runs/a/scores.jsonl"


def test_a_stage_tells_what_was_refused_reused_and_by_flag() -> None:
    shown = render.stage(a_result())
    assert shown.title == "score: done, 1,200 rows in runs/a/scores.jsonl"
    assert shown.notes == [
        "1.2 s, 200 rows reused",
        "refused: 3 duplicate, 1 empty answer",
        "by flag: select.ratio=0.2",
    ]


def test_a_stage_that_refused_nothing_says_nothing_of_it() -> None:
    shown = render.stage(a_result(reused=0, refused={}, overrides={}))
    assert shown.notes == ["1.2 s"]


def test_facts_of_a_stage_are_no_part_of_its_document() -> None:
    assert list(render.stage(a_result(stage="embed", facts={"cut": 2})).document) == STAGE_KEYS


@pytest.mark.parametrize(
    ("stage", "facts"), [("sanitize", {"changed": 2, "not_parsing": 1}), ("generate", {"tokens": 9, "truncated": 0})]
)
def test_what_happened_to_completions_stands_in_the_document(stage: str, facts: dict[str, int]) -> None:
    document = render.stage(a_result(stage=stage, facts=facts | {"replaced": "x"})).document
    assert list(document) == [*STAGE_KEYS, *facts]
    assert {name: document[name] for name in facts} == facts


def test_sanitize_tells_what_it_changed() -> None:
    assert "2 changed, 1 not valid Python" in render.stage(a_result(stage="sanitize", facts=SANITIZED)).notes


def test_generate_tells_its_tokens_and_what_the_limit_has_cut() -> None:
    notes = render.stage(a_result(stage="generate", rows=164, facts={"tokens": 12345, "truncated": 2})).notes
    assert notes[-2:] == [
        "12,345 tokens",
        "cut at generate.max_new_tokens: 2 of 164 completions",
    ]
    assert render.stage(a_result(stage="generate", facts={"tokens": 7, "truncated": 0})).notes[-1] == "7 tokens"


def test_embed_tells_how_many_instructions_were_cut() -> None:
    notes = render.stage(a_result(stage="embed", facts={"cut": 2})).notes
    assert "cut at the encoder's window: 2 instructions" in notes


def test_score_tells_how_many_answers_were_cut() -> None:
    notes = render.stage(a_result(stage="score", facts={"truncated": 1200})).notes
    assert "cut to fit score.max_length: 1,200 answers" in notes


def test_select_shows_a_row_per_cluster() -> None:
    clusters = [
        {"cluster": n, "rows": 10, "refused": 1, "dropped": 2, "eligible": 7, "taken": n, "ifd_quantiles": None}
        for n in range(2)
    ]
    result = a_result(stage="select", rows=1, refused={"mismatched pair": 6}, facts={"clusters": clusters})
    shown = render.stage(result)
    assert shown.columns == ("cluster", "rows", "set aside", "eligible", "taken")
    assert shown.optional == ["set aside"]  # a narrow terminal shows how many are taken
    assert shown.rows == [["0", "10", "3", "7", "0"], ["1", "10", "3", "7", "1"], ["all", "20", "6", "14", "1"]]
    assert "of 20 rows 6 set aside, 14 eligible, 1 taken" in shown.notes
    assert "set aside: 6 mismatched pair" in shown.notes
    assert shown.document["clusters"] == clusters


def test_what_smells_in_a_selection_is_told_by_run_too() -> None:
    clusters = [{"cluster": None, "rows": 9, "eligible": 9, "taken": 3}]
    figures = {"cost": None, "instructions_cut": None, "cluster_distance": None, "ifd_length_correlation": 0.6}
    figures |= {"novelsum": None, "novelsum_of_random_draw": None, "random_overlap": 0.5}
    found = {**figures, "random_overlap_by_chance": 0.5, "warnings": ["IFD follows the length of the answer"]}
    result = a_result(stage="select", rows=3, refused={}, facts={"clusters": clusters, "diagnostics": found})
    assert "warning: IFD follows the length of the answer" in render.stage(result).notes
    assert "rank correlation of IFD with length   0.60" in render.stage(result).notes
    assert "warning: select: IFD follows the length of the answer" in render.pipeline([result], [], []).notes


@pytest.mark.parametrize(("loss", "told"), [(0.51234, ", last loss 0.5123"), (None, "")])
@pytest.mark.parametrize(
    ("memory", "share", "told_of_gpu"),
    [
        (None, None, ""),
        (2_500_000_000, None, ", peak GPU memory 2.50 GB"),
        (2_500_000_000, 0.456, ", peak GPU memory 2.50 GB, 45.6 % MFU"),
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
        "mfu": share,
        "truncated_rows": 3,
        "lost_tokens": 4000,
        "lost_share": 0.125,
    }
    assert render.stage(a_result(stage="train", facts=facts)).notes[3:] == [
        f"7 steps, 12,345 tokens, padding 25.0 %{told}",
        f"1,234.6 s in its steps{told_of_gpu}",
        "truncated: 3 rows, 4,000 tokens lost (12.5 % of all)",
    ]


def test_evaluate_judges_one_model_and_its_report_is_the_document() -> None:
    report = a_report("base")
    assert render.one_evaluation(report).document == report


@pytest.mark.parametrize(("models", "compared"), [(["base"], []), (["base", "tuned"], [1])])
def test_one_model_and_several_have_documents_of_one_shape(models: list[str], compared: list[int]) -> None:
    reports, comparison = [a_report(model) for model in models], [COMPARED for _ in compared]
    document = render.evaluation(reports, comparison).document
    assert document == {"models": reports, "comparison": comparison}


def test_a_label_made_of_a_name_and_a_digest_is_shown_with_its_path() -> None:
    report = {**a_report("answers-85b4003b"), "path": "out/answers.jsonl"}
    assert render.evaluation([report], []).notes[1:] == ["answers-85b4003b: out/answers.jsonl"]  # type: ignore[list-item]
    on_two = [report, {**report, "benchmark": "mbpp"}]
    assert render.evaluation(on_two, []).notes[1:] == ["answers-85b4003b: out/answers.jsonl"]  # type: ignore[arg-type]


def test_figures_are_per_cent_with_one_decimal_and_have_their_interval() -> None:
    shown = render.evaluation([a_report("base")], [])
    assert shown.columns == ["benchmark", "model", "tasks", "base pass@1", "plus pass@1"]
    assert shown.rows == [["humaneval", "base", "164 of 164", "61.6 % (54.0 to 68.7)", "53.0 % (45.4 to 60.5)"]]


def test_every_k_has_its_columns() -> None:
    report = a_report("base")
    for suite in ("base", "plus"):
        report["pass_at_k"][suite]["pass@10"] = 0.9
        report["interval_95"][suite]["pass@10"] = [0.8, 1.0]
    columns = render.evaluation([report], []).columns
    assert columns[3:] == ["base pass@1", "plus pass@1", "base pass@10", "plus pass@10"]


def test_what_one_task_is_worth_and_the_sandbox_are_told() -> None:
    assert render.evaluation([a_report("base")], []).notes == [
        "points that one task is worth: of humaneval (164) 0.61; sandbox: process"
    ]


def test_what_one_task_is_worth_is_told_of_every_benchmark_once() -> None:
    reports = [a_report(model, name) for name in ("humaneval", "mbpp") for model in ("base", "tuned")]
    assert render.evaluation(reports, []).notes == [
        "points that one task is worth: of humaneval (164) 0.61, of mbpp (378) 0.26; sandbox: process"
    ]


def test_what_a_model_loses_before_it_is_judged_is_told() -> None:
    report = a_report("base")
    report["completions"] = {"tokens": 9000, "truncated": 3, "changed": 5, "not_parsing": 0}
    shown = render.evaluation([report], [])
    assert shown.notes[1:] == ["humaneval base, 164 completions: 3 cut at generate.max_new_tokens"]
    assert shown.document["models"][0]["completions"]["truncated"] == 3  # type: ignore[index]
    assert shown.notes[1] in render.pipeline([a_result()], [report], []).notes
    report["completions"] = {"tokens": 9000, "truncated": 0, "changed": 5, "not_parsing": 0}
    assert len(render.evaluation([report], []).notes) == 1


def test_a_comparison_is_a_line_for_each_suite_with_the_first_tasks_by_name() -> None:
    base, plus = render.evaluation([a_report("base"), a_report("tuned")], [COMPARED]).notes[1:]
    assert base == (
        "humaneval, base tests, tuned against base (164 tasks in common): +11.0 points (+5.5 to +16.5; exact McNemar "
        "p = 0.00028), told apart (they find 8.4 or more); won 21 (HumanEval/0, HumanEval/1, HumanEval/2, HumanEval/3, "
        "HumanEval/4 and 16 more); lost 3 (HumanEval/60, HumanEval/61, HumanEval/62)"
    )
    assert plus.startswith("humaneval, plus tests, tuned against base")
    assert plus.endswith("won 1 (HumanEval/0); lost 0")


@pytest.mark.parametrize(
    ("least", "said"),
    [(0.098, "not told apart (they find 9.8 or more); won"), (2.0, "not told apart (so few tasks find")],
)
def test_a_difference_below_the_least_that_the_tasks_find_is_not_told_apart(least: float, said: str) -> None:
    compared: Any = {**COMPARED, "base": {**DIFFERENCE, "least_difference": least, "told_apart": False}}
    assert said in render.comparison_lines(compared)[0]


def test_comparisons_on_two_benchmarks_can_be_told_apart() -> None:
    reports = [a_report(model, name) for name in ("humaneval", "mbpp") for model in ("base", "tuned")]
    notes = render.evaluation(reports, [COMPARED, {**COMPARED, "benchmark": "mbpp"}]).notes[1:]
    assert [note.partition(",")[0] for note in notes] == ["humaneval", "humaneval", "mbpp", "mbpp"]


def test_many_models_are_shown_against_the_first_and_every_pair_is_in_the_document() -> None:
    models = ["base", "checkpoint-1", "checkpoint-2", "tuned"]
    pairs: list[Any] = [{**COMPARED, "models": [first, second]} for first, second in combinations(models, 2)]
    shown = render.evaluation([a_report(model) for model in models], pairs)
    assert [note.partition(" (")[0].split(", ")[2] for note in shown.notes[1::2]] == [
        f"{model} against base" for model in models[1:]
    ]
    assert len(shown.document["comparison"]) == 6


def test_a_run_shows_its_stages_where_nothing_was_evaluated() -> None:
    shown = render.pipeline([a_result(), a_result(stage="embed", refused={})], [], [])
    assert [list(stage) for stage in shown.document["stages"]] == [STAGE_KEYS, STAGE_KEYS]
    assert (shown.document["models"], shown.document["comparison"]) == ([], [])
    assert shown.rows == [["score", "done", "1,200", "3 duplicate, 1 empty answer"], ["embed", "done", "1,200", ""]]


def test_what_was_done_before_is_up_to_date() -> None:
    result = a_result(rows=44, reused=44, refused={}, overrides={})
    shown = render.stage(result)
    assert (shown.title, shown.notes) == ("score: already up to date (44 rows), runs/a/scores.jsonl", ["1.2 s"])
    assert render.pipeline([result], [], []).rows == [["score", "up to date", "44", ""]]


def test_one_row_is_no_plural() -> None:
    assert render.stage(a_result(rows=1, reused=0)).title == "score: done, 1 row in runs/a/scores.jsonl"


def test_a_run_shows_its_figures_and_what_each_stage_took() -> None:
    reports = [a_report("base"), a_report("tuned")]
    results = [a_result(), *(evaluated(model) for model in ("base", "tuned"))]
    shown = render.pipeline(results, reports, [COMPARED])
    assert shown.document["models"] == reports
    assert shown.document["comparison"] == [COMPARED]
    assert [row[1] for row in shown.rows] == ["base", "tuned"]
    assert "time: score 1.2 s, evaluate humaneval base 1.2 s, evaluate humaneval tuned 1.2 s" in shown.notes


def test_status_tells_the_next_command_that_is_needed() -> None:
    lines = [
        StatusLine("score", "not needed", "select.strategy is all", ""),
        StatusLine("select", "done", "5 rows", "codetune select"),
        StatusLine("train", "stale", "learning rate", "codetune train"),
        StatusLine("humaneval base", "missing", "", "codetune eval humaneval --model base"),
    ]
    shown = render.status(lines)
    assert shown.document["next"] == "codetune train"
    assert shown.document["stages"][0] == {"stage": "score", "state": "not needed", "detail": "select.strategy is all"}
    assert shown.notes == ["next: codetune train"]


def test_status_names_no_command_that_a_running_process_would_refuse() -> None:
    shown = render.status([StatusLine("train", "partial", "step 2 of 7", "codetune train", is_running=True)])
    assert shown.notes == ["next, when this has ended: codetune status"]


def test_status_says_when_everything_is_done() -> None:
    shown = render.status([StatusLine("select", "done", "5 rows", "codetune select")])
    assert (shown.document["next"], shown.notes) == (None, ["everything is done"])


def test_models_whose_losses_are_not_compared_are_named_with_the_reason() -> None:
    reports: Any = [
        {"model": name, "rows": 8, "tokens": 90, "nats_per_token": 1.5, "interval_95": (1.2, 1.8), "refused": {}}
        for name in ("base", "other-0a1b2c3d")
    ]
    (note,) = render.likelihoods(reports, []).notes
    assert note.startswith("other-0a1b2c3d against base: not compared. ")
    assert "tokenizers" in note


@pytest.mark.parametrize(
    ("rows", "said"), [(5, "not told apart (so few rows find none)"), (6, " told apart (they find 0.0000 or more)")]
)
def test_rows_that_are_too_few_for_any_difference_name_no_least_one(rows: int, said: str) -> None:
    losses = [{str(row): (nats * 9.0, 9) for row in range(rows)} for nats in (5, 4)]
    reports = [report_likelihood(name, found, {}, 7) for name, found in zip(("base", "tuned"), losses, strict=True)]
    (compared,) = compare_likelihoods(reports, 7)
    assert (compared["least_difference"] is None) == (rows == 5)
    assert said in render.likelihoods(reports, [compared]).notes[0]


SANITIZED = {"changed": 2, "not_parsing": 1}
DIFFERENCE = {
    "test": "exact McNemar",
    "p_value": 0.000277,
    "difference": 18 / 164,
    "interval_95": (0.055, 0.165),
    "least_difference": 0.0837,
    "told_apart": True,
    "only_first": 3,
    "only_second": 21,
    "won": [f"HumanEval/{n}" for n in range(21)],
    "lost": [f"HumanEval/{n}" for n in range(60, 63)],
}
COMPARED: Any = {
    "benchmark": "humaneval",
    "models": ["base", "tuned"],
    "tasks": 164,
    "one_task": 1 / 164,
    "base": DIFFERENCE,
    "plus": {**DIFFERENCE, "won": ["HumanEval/0"], "lost": []},
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


def evaluated(model: str) -> StageResult:
    return a_result(stage="evaluate", artefact=Path(f"runs/a/evaluation/humaneval/{model}.json"))


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
