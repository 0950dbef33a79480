"""The card of a trained model: what it says, that the Hub reads it, and that it makes nothing stale."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from codetune.project.file import read_project
from codetune.stages.benchmarks import open_benchmark
from codetune.stages.card_text import MARKS, TEXT_MARKS
from codetune.stages.evaluate import EVALUATE
from codetune.stages.likelihood import measure_holdout
from codetune.stages.model_card import update_card
from codetune.stages.model_ref import model_ref
from codetune.stages.stage import RunContext, StageRequest
from codetune.stages.status import stage_status
from codetune.stages.train import TRAIN
from tests import pipeline
from tests.small_world import context_of, make_small_world

SETTINGS: dict[str, Any] = {"select__strategy": "random", "train__holdout": 6, "train__max_steps": 2}
PIECES = b"a vocabulary of SentencePiece"
LICENCE = "---\nlicense: other\nlicense_name: small\nlicense_link: https://example.org/small\n---\n# Small\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_small_world(tmp_path_factory.mktemp("trained"), 30)
    (project.parent / "base" / "README.md").write_text(LICENCE, encoding="utf-8")
    (project.parent / "base" / "tokenizer.model").write_bytes(PIECES)
    context = context_of(project, **SETTINGS)
    pipeline.select(context)
    pipeline.train(context)
    return project


@pytest.fixture
def context(trained: Path, tmp_path: Path) -> RunContext:
    """A copy of the trained run, which a test may change."""
    shutil.copytree(trained.parent, tmp_path / "copy")
    return context_of(tmp_path / "copy" / trained.name, **SETTINGS)


def test_the_hub_reads_a_card_with_no_path_of_this_machine(trained: Path, context: RunContext) -> None:
    card = ModelCard.load(context.run.model / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "other",
        "license_name": "small",
        "license_link": "https://example.org/small",
        "pipeline_tag": "text-generation",
        "tags": ["codetune", "code"],
    }
    assert str(trained.parent) not in card.content
    assert "base, fine-tuned (method full) on 9 rows of data.jsonl by codetune" in card.text
    assert "held out 6" in card.text
    assert "| train.learning_rate | 0.001 |" in card.text
    assert "loss on 6 held-out rows: " in card.text
    assert "transformers " in card.text
    assert "Not evaluated yet." in card.text


def test_the_vocabulary_that_llama_cpp_converts_from_lies_beside_the_weights(context: RunContext) -> None:
    assert (context.run.model / "tokenizer.model").read_bytes() == PIECES


def test_the_project_in_a_card_is_the_one_that_was_trained(context: RunContext, tmp_path: Path) -> None:
    text = (context.run.model / "README.md").read_text(encoding="utf-8")
    (tmp_path / "again.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    again = read_project(tmp_path / "again.yaml", [], {})
    assert again.model_dump() == context.project.model_dump()


def test_results_come_into_the_card_and_make_nothing_stale(context: RunContext) -> None:
    tasks = open_benchmark(context, "tasks.jsonl")
    before = context.digests.artefact(context.run.model)
    for name in ("base", "tuned"):
        model = model_ref(context, name)
        pipeline.generate(context, tasks, model)
        pipeline.sanitize(context, tasks, model)
        pipeline.evaluate(context, tasks, model)
    measure_holdout(context, [])
    card = ModelCard.load(context.run.model / "README.md")
    results = card.data.eval_results
    assert results is not None
    assert [(one.dataset_type, one.dataset_name, one.metric_type, one.metric_value) for one in results] == [
        ("tasks", "tasks (base tests)", "pass@1", 0.0),
        ("tasks", "tasks (plus tests)", "pass@1", 0.0),
    ]
    figures = "0.0 % (0.0 to 56.1)"
    assert f"| tasks | 3 | base | pass@1 | {figures} | {figures} | +0.0 points (-56.1 to +56.1), not told apart |" in (
        card.text
    )
    assert "- tasks, this model: max_new_tokens 8, prompt chat, samples_per_task 1, temperature 0.0" in card.text
    assert "- Loss of this model on 6 held-out rows: " in card.text
    assert context.digests.artefact(context.run.model) == before
    assert stage_status(context, TRAIN).state == "done"
    assert stage_status(context, EVALUATE, StageRequest(benchmark=tasks.name, label="tuned")).state == "done"
    pipeline.train(context_of(context.project.root / "codetune.yaml", **SETTINGS, train__epochs=2), replacing=True)
    assert "Not evaluated yet." in (context.run.model / "README.md").read_text(encoding="utf-8")


def answer(context: RunContext, name: str) -> None:
    tasks, model = open_benchmark(context, "tasks.jsonl"), model_ref(context, name)
    for stage in (pipeline.generate, pipeline.sanitize, pipeline.evaluate):
        stage(context, tasks, model)


def test_no_result_stays_of_completions_that_were_made_anew(context: RunContext) -> None:
    answer(context, "tuned")
    path = context.run.model / "README.md"
    assert "| tasks | 3 | plus |" in path.read_text(encoding="utf-8")
    shorter = context_of(context.project.root / "codetune.yaml", **SETTINGS, generate__max_new_tokens=4)
    pipeline.generate(shorter, open_benchmark(shorter, "tasks.jsonl"), model_ref(shorter, "tuned"))
    assert "Not evaluated yet." in path.read_text(encoding="utf-8")


def test_the_base_model_stands_beside_it_on_the_same_tasks_and_rows_only(context: RunContext) -> None:
    project, path = context.project.root / "codetune.yaml", context.run.model / "README.md"
    measure_holdout(context, [])
    answer(context, "tuned")
    answer(context, "base")
    both = path.read_text(encoding="utf-8")
    assert "told apart |" in both
    assert "- Loss of the base model" in both
    tasks = project.parent / "tasks.jsonl"
    tasks.write_text(tasks.read_text(encoding="utf-8").replace("[[1], [2]]", "[[1], [3]]", 1), encoding="utf-8")
    other = context_of(project, **{**SETTINGS, "seed": 7})
    pipeline.select(other)
    measure_holdout(other, ["base"])
    answer(other, "base")
    alone = path.read_text(encoding="utf-8")
    assert "| tasks | 3 | plus | pass@1 |  | 0.0 %" in alone
    assert "- Loss of this model" in alone
    assert "- Loss of the base model" not in alone


def test_the_text_of_a_user_stays_when_results_come(context: RunContext) -> None:
    path = context.run.model / "README.md"
    path.write_text(f"---\nlanguage: en\n---\nMine.\n{TEXT_MARKS[0]}\n{TEXT_MARKS[1]}\nMine too.\n", encoding="utf-8")
    measure_holdout(context, ["tuned"])
    opening, *results, closing = path.read_text(encoding="utf-8").split("\n- Loss of this model")
    assert len(results) == 0
    assert opening == f"---\nlanguage: en\n---\nMine.\n{TEXT_MARKS[0]}"
    assert closing.endswith(f"\n{TEXT_MARKS[1]}\nMine too.\n")
    assert stage_status(context, TRAIN).state == "done"


@pytest.mark.parametrize("card", [b"# My own card\n", b"\xff\xfe no text"])
def test_a_card_without_a_place_for_results_stays_as_it_is(context: RunContext, card: bytes) -> None:
    (context.run.model / "README.md").write_bytes(card)
    measure_holdout(context, ["tuned"])
    assert (context.run.model / "README.md").read_bytes() == card


def test_a_card_that_was_deleted_is_written_again(context: RunContext) -> None:
    path = context.run.model / "README.md"
    card = path.read_text(encoding="utf-8")
    path.unlink()
    pipeline.train(context)
    assert path.read_text(encoding="utf-8") == card
    assert all(mark in card for mark in (*MARKS, *TEXT_MARKS))


def test_a_selection_that_is_another_one_now_is_not_told_as_the_models(context: RunContext) -> None:
    (context.run.model / "README.md").unlink()
    pipeline.select(context_of(context.project.root / "codetune.yaml", **SETTINGS, select__ratio=0.7))
    update_card(context)
    assert "no longer in the run directory" in (context.run.model / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("merge", "places"), [(False, [""]), (True, ["", "adapter"])])
def test_adapters_have_a_card_in_the_place_of_the_form_of_peft(
    context: RunContext, merge: bool, places: list[str]
) -> None:
    flags = {**SETTINGS, "train__method": "lora", "train__merge": merge}
    context = context_of(context.project.root / "codetune.yaml", **flags)
    pipeline.train(context, replacing=True)
    cards = [ModelCard.load(context.run.model / place / "README.md") for place in places]
    assert all("fine-tuned (method lora)" in card.text for card in cards)
    assert cards[-1].data.library_name == "peft"
    assert cards[-1].data.tags == ["codetune", "code", "lora"]
    assert (cards[0].data.library_name == "transformers") == merge
    assert not any(str(context.project.root) in card.content for card in cards)
