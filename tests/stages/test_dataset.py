"""What is found in the data and the model seals as if it were written, and what the project does not name is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetune import workflow
from codetune.errors import DataError, InputError, ModelError
from codetune.stages.dataset import CONTENT, dataset_input, ensure_examples, reading_facts
from codetune.stages.runner import stage_settings
from codetune.stages.stage import RunContext, SealedArtefact, StageRequest
from codetune.stages.train import TRAIN, with_chat_format
from codetune.store.manifest import Manifest
from tests.small_world import context_of, rows, write_rows

COLUMNS = {"dataset__instruction": "instruction", "dataset__response": "output"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that names a data set and a model, and neither columns nor a chat format."""
    write_rows(tmp_path / "data.jsonl", rows(3))
    (tmp_path / "base").mkdir()
    write_tokens(tmp_path, ["<|im_start|>", "<|im_end|>"])
    path = tmp_path / "codetune.yaml"
    path.write_text("{dataset: {path: data.jsonl}, model: {path: base}}", encoding="utf-8")
    return path


def write_tokens(directory: Path, tokens: list[str]) -> None:
    listed = [{"content": token} for token in tokens]
    (directory / "base" / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}), encoding="utf-8")


@pytest.mark.parametrize(("first", "second"), [({}, COLUMNS), (COLUMNS, {})])
def test_columns_that_are_found_make_nothing_stale_that_was_made_with_the_same_written(
    first: dict[str, str], second: dict[str, str], project: Path
) -> None:
    made = ensure_examples(context_of(project, **first))
    context = context_of(project, **second)
    assert change(context, made.facts[CONTENT]) == ""
    before = context.run.examples.stat().st_mtime_ns
    assert ensure_examples(context) == made
    assert context.run.examples.stat().st_mtime_ns == before


def test_columns_that_are_found_are_named_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_examples(context_of(project))
    assert "data.jsonl: columns found: instruction is instruction, response is output" in capsys.readouterr().err
    assert reading_facts(context_of(project))["columns"] == {"instruction": "instruction", "response": "output"}
    ensure_examples(context_of(project))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"instruction": "Add.", "output": ""}, ", or dataset.instruction and dataset.response"),
        ({"messages": json.dumps([{"role": "user", "content": "Add."}])}, ""),
    ],
)
def test_columns_are_advised_only_where_rows_are_read_by_them(row: dict[str, str], fix: str, project: Path) -> None:
    write_rows(project.with_name("data.jsonl"), [row])
    with pytest.raises(DataError, match=rf"holds no usable row \(1 .*; the first: data.jsonl:1\).* Fix the data{fix}$"):
        ensure_examples(context_of(project))


def test_other_columns_than_those_found_make_stale(project: Path) -> None:
    made = ensure_examples(context_of(project))
    other = context_of(project, **{**COLUMNS, "dataset__response": "instruction"})
    assert "dataset.response 'output'" in change(other, made.facts[CONTENT])


def test_a_chat_format_that_is_found_seals_as_the_same_written(project: Path) -> None:
    found = stage_settings(context_of(project), TRAIN, StageRequest())
    written = stage_settings(context_of(project, model__chat_format="codeqwen"), TRAIN, StageRequest())
    assert found == written


def test_a_chat_format_that_cannot_be_found_here_makes_nothing_stale(project: Path) -> None:
    context = context_of(project, model__path="elsewhere/model")
    assert "model.chat_format" not in stage_settings(context, TRAIN, StageRequest())


def test_training_without_a_chat_format_is_refused(project: Path) -> None:
    write_tokens(project.parent, [])
    context = context_of(project)
    assert "model.chat_format" not in stage_settings(context, TRAIN, StageRequest())
    with pytest.raises(ModelError, match=r"model\.chat_format is not set"):
        with_chat_format(context.project, project.parent / "base")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{}", "dataset.path"),
        ("dataset: {path: data.jsonl}", "model.path"),
        ("{model: {path: base}, select: {strategy: random}}", "dataset.path"),
    ],
)
def test_a_run_names_what_is_not_set_before_any_benchmark_is_looked_for(text: str, key: str, project: Path) -> None:
    project.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"{key} is not set"):
        list(workflow.run(context_of(project), workflow.STAGES))


def change(context: RunContext, content: str) -> str:
    """How the data set differs from the one that made an artefact of these rows."""
    made = Manifest("score", "", 0, {}, {"dataset": content}, {}, {}, 0.0)
    return dataset_input().change(context, StageRequest(), SealedArtefact(context.run.scores, made))
