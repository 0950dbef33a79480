"""Chat families against docs/method.md, section 2, written out by hand."""

from __future__ import annotations

from typing import get_args

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from codetune.data import chat
from codetune.data.chat import FAMILIES, ChatFamily, chat_template, render_chat, stop_strings
from codetune.data.own_template import RenderedChat
from codetune.errors import ModelError
from codetune.project.sections import ChatFormat
from codetune.records import Message, Role

# before the answer "yo" to "hi"; between that answer and the next user turn "ho"
WRITTEN = {
    "deepseek": ("### Instruction:\nhi\n### Response:\n", "\n### Instruction:\nho\n### Response:\n"),
    "starcoder2": ("### Instruction:\nhi\n### Response:\n", "\n### Instruction:\nho\n### Response:\n"),
    "codellama": ("[INST] hi [/INST]", "<s>[INST] ho [/INST]"),
    "codegemma": (
        "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n<start_of_turn>user\nho<end_of_turn>\n<start_of_turn>model\n",
    ),
    "codeqwen": (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "\n<s><|im_start|>user\nho<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nho<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


class FakeTokenizer:
    """Writes turns as `role:content|`, closed by EOS after an answer."""

    eos_token: str | None = "</s>"
    chat_template = None
    all_special_tokens = ("</s>", "<end>")

    def __init__(self, closer: str = "</s>") -> None:
        self.closer = closer

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        text = ""
        for turn in conversation:
            closer = f"{self.closer}\n" if turn["role"] == "assistant" else "\n"
            text += f"{turn['role']}:{turn['content']}{closer}"
        return text + ("assistant:" if add_generation_prompt else "")


def messages(*turns: tuple[Role, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


def test_a_tokenizer_without_an_eos_is_an_error() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no EOS token \(eos_token\).*tokenizer_config.json"):
        render_chat("deepseek", messages(("user", "hi"), ("assistant", "yo")), tokenizer, "", "all")


TWO_ANSWERS = messages(("user", "hi"), ("assistant", "yo"), ("user", "ho"), ("assistant", "ya"))


@pytest.mark.parametrize("family", WRITTEN)
def test_a_family_writes_two_turns_as_the_method_says(family: str) -> None:
    before, between = WRITTEN[family]
    rendered = render_chat(family, TWO_ANSWERS, FakeTokenizer(), "<s>", "all")
    assert isinstance(rendered, RenderedChat)
    assert rendered.text == f"<s>{before}yo</s>{between}ya</s>"
    assert [rendered.text[start:end] for start, end in rendered.answers] == ["yo</s>", "ya</s>"]


@pytest.mark.parametrize("family", WRITTEN)
def test_without_a_bos_none_is_written(family: str) -> None:
    rendered = render_chat(family, TWO_ANSWERS, FakeTokenizer(), "", "all")
    assert isinstance(rendered, RenderedChat)
    assert "<s>" not in rendered.text


@pytest.mark.parametrize(
    ("family", "start"),
    [
        ("deepseek", "### Instruction:\nbe brief\n\nhi\n"),
        ("codellama", "[INST] be brief\n\nhi [/INST]"),
        ("codegemma", "<start_of_turn>user\nbe brief\n\nhi<end_of_turn>\n"),
        ("codeqwen", "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|><|start_header_id|>user<|end_header_id|>",
        ),
    ],
)
def test_a_system_text_is_a_turn_of_its_own_or_precedes_the_first_users_text(family: str, start: str) -> None:
    rendered = render_chat(family, messages(("system", "be brief"), *_pairs(TWO_ANSWERS)), FakeTokenizer(), "", "all")
    assert isinstance(rendered, RenderedChat)
    assert rendered.text.startswith(start)
    assert rendered.text.count("be brief") == 1


def test_the_end_of_turn_stops_generation_where_a_family_has_one() -> None:
    stops = {family: stop_strings(family) for family in FAMILIES}
    assert {family: texts for family, texts in stops.items() if texts} == {
        "codegemma": ("<end_of_turn>",),
        "codeqwen": ("<|im_end|>",),
        "llama3": ("<|eot_id|>",),
    }
    assert stop_strings("tokenizer") == ()


def test_the_answers_are_found_in_the_text_of_the_tokenizers_own_template() -> None:
    rendered = render_chat("tokenizer", TWO_ANSWERS, FakeTokenizer(), "<s>", "all")
    assert isinstance(rendered, RenderedChat)
    assert rendered.text == "user:hi\nassistant:yo</s>\nuser:ho\nassistant:ya</s>\n"
    assert [rendered.text[start:end] for start, end in rendered.answers] == ["yo</s>", "ya</s>"]


def test_a_template_may_close_answers_by_another_special_token() -> None:
    rendered = render_chat("tokenizer", TWO_ANSWERS, FakeTokenizer(closer="<end>"), "", "all")
    assert isinstance(rendered, RenderedChat)
    assert [rendered.text[start:end] for start, end in rendered.answers] == ["yo<end>", "ya<end>"]


def _pairs(turns: list[Message]) -> list[tuple[Role, str]]:
    return [(turn.role, turn.content) for turn in turns]


def test_every_family_is_a_value_of_the_setting() -> None:
    assert set(get_args(ChatFormat)) == {*FAMILIES, "tokenizer"}


def test_a_family_is_added_by_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    added = ChatFamily(before_user="Q: ", before_answer=" A: ", between_turns=" ", stop_strings=("Q:",))
    monkeypatch.setattr(chat, "FAMILIES", {**FAMILIES, "added": added})
    rendered = render_chat("added", TWO_ANSWERS, FakeTokenizer(), "<s>", "all")
    assert isinstance(rendered, RenderedChat)
    assert rendered.text == "<s>Q: hi A: yo</s> Q: ho A: ya</s>"
    assert stop_strings("added") == ("Q:",)
    template = ImmutableSandboxedEnvironment().from_string(chat_template("added", with_bos=True))
    turns = [{"role": message.role, "content": message.content} for message in TWO_ANSWERS]
    assert template.render(messages=turns, bos_token="<s>", eos_token="</s>") == rendered.text
