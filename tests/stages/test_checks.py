"""What later stages lack is told before the first one begins; no stage is asked that has nothing to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from codetune import workflow
from codetune.errors import CodetuneError, DataError, InputError, ModelError, ProjectError, StaleError, UsageError
from codetune.stages.benchmarks import open_benchmark, samples_request
from codetune.stages.pipeline import stages_between
from codetune.stages.sandbox import working_tier
from tests import pipeline
from tests.model.builders import byte_tokenizer
from tests.small_world import context_of, make_small_world

EVERYTHING = stages_between("score", "evaluate")
TO_SELECT = stages_between("score", "select")
RANDOM = {"select__strategy": "random"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_small_world(tmp_path, 8)


@pytest.mark.parametrize(
    ("flags", "error", "told"),
    [
        ({"embed__model": "./nowhere"}, ModelError, r"no directory \./nowhere"),
        ({"model__chat_format": "tokenizer"}, ModelError, "has no chat template"),
        ({"model__chat_format": "llama3"}, ModelError, r"<\|eot_id\|>.*one of: deepseek, starcoder2, codellama$"),
        ({"launch__strategy": "fsdp"}, ProjectError, "there is no GPU"),
        ({"launch__nodes": 2}, UsageError, r"nodes is 2.*MASTER_ADDR \(now None\)"),
        ({"train__max_length": 9}, ProjectError, r"shortest row has \d+ tokens.*no answer token within 9 tokens"),
        ({"train__max_length": 9, "train__too_long": "drop"}, ProjectError, "longer than 9 tokens"),
        ({"score__max_length": 5}, ProjectError, "prompt leaves no room for the answer in 5 tokens"),
        ({"select__count": 9}, DataError, "count is 9, and the data set has 8 usable rows"),
        ({"select__clusters": 9}, DataError, "clusters is 9, and the data set has 8 usable rows"),
        ({"select__mismatch": "calibrated"}, DataError, "of 8 usable rows score makes 8 .*Set select.mismatch to ifd$"),
        (
            {"select__mismatch": "calibrated", "train__holdout": 1},
            DataError,
            "of 7 usable rows that train.holdout leaves score makes 7",
        ),
        ({"select__clusters": 5, "train__holdout": 4}, DataError, "train.holdout leaves 4 of 8 usable rows"),
        ({"model__attention": "flash"}, ModelError, "needs an NVIDIA GPU"),
        (
            {"train__method": "lora", "train__lora__target_modules": ["no_proj"]},
            ProjectError,
            r"target_modules: no_proj is not a module of LlamaForCausalLM.*, q_proj, ",
        ),
        ({"generate__backend": "vllm"}, ProjectError, "vllm is not installed"),
        ({"generate__prompt": "chat"}, ModelError, "has no chat template"),
        ({"evaluate__benchmarks": ["nowhere.jsonl"]}, UsageError, "no file 'nowhere.jsonl'"),
        ({"evaluate__k": [3]}, UsageError, "pass@3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_later_stage_lacks_is_told_before_the_first_and_not_where_that_stage_is_not_asked_for(
    flags: dict[str, Any], error: type[Exception], told: str, project: Path
) -> None:
    context = context_of(project, **flags)
    with pytest.raises(error, match=told):
        next(workflow.run(context, EVERYTHING))
    assert not context.run.scores.exists()
    if "embed__model" not in flags and "select__count" not in flags:
        next(workflow.run(context_of(project, **RANDOM, **flags), stages_between("select", "select")))


def test_a_chat_format_whose_tokens_have_no_embedding_is_told_before_the_first_stage(
    project: Path, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(bos=True)
    entries = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.save_pretrained(tmp_path / "base")
    context = context_of(project, model__chat_format="codegemma")
    told = rf"token {entries + 1:,} \('<end_of_turn>'\) of the chat format codegemma, and its model has {entries:,} emb"
    with pytest.raises(ModelError, match=told):
        next(workflow.run(context, EVERYTHING))
    assert not context.run.scores.exists()


def test_a_template_in_which_no_answer_can_be_learned_is_told_before_the_first_stage(
    project: Path, tmp_path: Path
) -> None:
    template = "{% for m in messages %}{{ m['content'] | upper }}</s>{% endfor %}"
    (tmp_path / "base" / "chat_template.jinja").write_text(template, encoding="utf-8")
    context = context_of(project, model__chat_format="tokenizer")
    with pytest.raises(ModelError, match=r"No conversation can be learned in the format tokenizer: .*leaves out or"):
        next(workflow.run(context, EVERYTHING))
    assert not context.run.scores.exists()


def test_a_named_pipe_in_the_place_of_a_file_is_refused_and_not_opened(project: Path) -> None:
    os.mkfifo(project.parent / "pipe.jsonl")
    context = context_of(project)
    with pytest.raises(UsageError, match=r"pipe\.jsonl is a named pipe"):
        open_benchmark(context, "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is a named pipe"):
        samples_request(context, open_benchmark(context, "tasks.jsonl"), project.parent / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is a named pipe"):
        pipeline.select(context_of(project, dataset__path="pipe.jsonl", **RANDOM))


def test_a_tracker_that_is_not_installed_is_told_before_the_first_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codetune.training.trainer.is_wandb_available", lambda: False)
    with pytest.raises(ProjectError, match="report_to names wandb"):
        next(workflow.run(context_of(project, train__report_to=["wandb"]), EVERYTHING))


def test_a_sandbox_that_does_not_work_is_told_before_the_first_stage_and_before_anything_is_generated(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    working_tier.cache_clear()
    context = context_of(project, evaluate__sandbox="bubblewrap")
    with pytest.raises(CodetuneError, match="bubblewrap"):
        next(workflow.run(context, EVERYTHING))
    with pytest.raises(CodetuneError, match="bubblewrap"):
        workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), ["base"])
    assert not context.run.scores.exists()
    assert not context.run.completions("tasks", "base").parent.exists()


def test_a_cache_that_cannot_be_written_is_told_before_the_first_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETUNE_CACHE_DIR", str(project))
    with pytest.raises(InputError, match=r"codetune\.yaml: expected outputs cannot be kept there.*CODETUNE_CACHE_DIR"):
        next(workflow.run(context_of(project), EVERYTHING))


def test_every_model_of_an_evaluation_is_checked_before_the_first_writes(project: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    context = context_of(project)
    with pytest.raises(UsageError, match="other can be prompted as a chat or with raw text"):
        workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), ["base", "other"])
    assert not context.run.completions("tasks", "base").parent.exists()


def test_a_selection_that_is_missing_is_told_before_the_training_where_a_run_begins_with_it(project: Path) -> None:
    with pytest.raises(StaleError, match="Run: codetune select"):
        next(workflow.run(context_of(project), stages_between("train", "evaluate")))
    with pytest.raises(StaleError, match="Run: codetune train"):
        next(workflow.run(context_of(project), stages_between("generate", "evaluate")))


def test_a_run_that_would_replace_a_finished_model_stops_before_it_selects_again(project: Path) -> None:
    to_train = stages_between("select", "train")
    list(workflow.run(context_of(project, **RANDOM), to_train))
    other = context_of(project, **RANDOM, select__ratio=0.9)
    before = other.run.selection.read_bytes()
    with pytest.raises(StaleError, match=r"ratio 0\.4, the flag now says 0\.9\. What would be lost: a model of"):
        list(workflow.run(other, to_train))
    assert other.run.selection.read_bytes() == before
    assert [result.reused for result in workflow.run(other, to_train, replace=True)] == [0, 0]
    assert len(list(workflow.run(other, to_train))) == 2


def test_a_finished_stage_needs_nothing(project: Path) -> None:
    pipeline.select(context_of(project, **RANDOM))
    flags = {**RANDOM, "train__save_steps": 2}
    pipeline.train(context_of(project, **flags))
    # Logs and processes are no part of what was made, and what they need is not asked for.
    again = context_of(project, **flags, launch__strategy="fsdp")
    assert [result.stage for result in workflow.run(again, stages_between("train", "train"))] == ["train"]
