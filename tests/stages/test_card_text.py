"""The text of a card: names of others in it, and its front matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from huggingface_hub import ModelCard

from codetune.project.file import commented_yaml, read_project
from codetune.stages.card_text import CardFacts, Source, card
from codetune.store.manifest import Manifest

SETTINGS = {"seed": 1, "train.method": "qlora", "train.lora.target_modules": "a|b</td>", "model.chat_format": "llama3"}
TRAINED: dict[str, Any] = {
    "steps": 3,
    "tokens": 90,
    "padding_rate": 0.25,
    "last_loss": None,
    "truncated_rows": 1,
    "seconds": 2.0,
    "processes": 2,
    "strategy": "ddp",
    "versions": {"torch": "2.13.0"},
}
TRAINING = Manifest("train", "d" * 64, 4, {}, {"base": "b" * 64, "select": "s"}, SETTINGS, {}, 2.0, TRAINED)
FACTS = CardFacts(
    "small",
    Source("meta/llama", True),
    [Source("ise/oss", True)],
    {"license": "mit"},
    TRAINING,
    None,
    None,
    "name: x\n",
)


def test_a_card_of_adapters_over_a_model_of_the_hub_has_all_that_the_hub_asks_for() -> None:
    assert ModelCard(card(FACTS, is_adapter=True)).data.to_dict() == {
        "base_model": "meta/llama",
        "datasets": ["ise/oss"],
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["codetune", "code", "qlora"],
    }


@pytest.mark.parametrize(
    "name", ["a|b", "<script>alert(1)</script>.jsonl", "[x](y)", "`rm`", "_a_ *b*", "a\nb", "\u202eb"]
)
def test_names_of_others_are_shown_as_they_are_and_are_no_markup(name: str) -> None:
    facts = dataclasses.replace(FACTS, base=Source(name, False), datasets=[Source(name, False)])
    text = card(facts, is_adapter=False)
    assert name not in text
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers"
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert len(text.splitlines()) == len(card(FACTS, is_adapter=False).splitlines()) - 3  # base_model, and datasets


def test_several_data_sets_and_text_of_the_user_stand_in_the_project_as_they_were(tmp_path: Any) -> None:
    values = {
        "score.prompt": 'é "😀" ```\n{instruction}',
        "dataset": [{"name": "a", "path": "x: y.jsonl", "weight": 0.5}],
    }
    (tmp_path / "again.yaml").write_text(commented_yaml(values), encoding="utf-8")
    again = read_project(tmp_path / "again.yaml", [], {})
    assert again.score.prompt == values["score.prompt"]
    assert [(one.name, one.path, one.weight) for one in again.datasets] == [("a", "x: y.jsonl", 0.5)]  # type: ignore[attr-defined]
