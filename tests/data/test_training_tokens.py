"""The tokens of training are those that the saved tokenizer writes, one by one, with real tokenizers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from codetune.data.chat import FAMILIES, chat_template
from codetune.data.tokens import DroppedSample, TrainingTokens, adds_bos, training_tokens
from codetune.errors import ModelError
from codetune.model.load import load_tokenizer
from codetune.project.sections import ChatFormat
from codetune.records import Example, Message, Refusal
from tests.data.test_own_template import BLOCKS
from tests.model.builders import byte_tokenizer

CONVERSATIONS = {
    "one turn": [("user", "Add two numbers."), ("assistant", "def add(a, b):\n    return a + b\n")],
    "two turns": [("user", "hi"), ("assistant", "yo  "), ("user", "again"), ("assistant", "ja, é ✓ 加")],
    "system": [("system", "Be brief."), ("user", "hi"), ("assistant", "yo"), ("user", "ho"), ("assistant", "ya")],
    "answer begins with space": [("user", "indent\n"), ("assistant", "\n\n    return 1")],
}
REAL = {"deepseek": "deepseek-coder-6.7b-instruct", "codellama": "codellama"}


def example(turns: list[tuple[str, str]]) -> Example:
    return Example("0" * 16, tuple(Message(role, content) for role, content in turns), "x:1")


def trained(tokenizer: PreTrainedTokenizerBase, chat_format: str, turns: list[tuple[str, str]]) -> TrainingTokens:
    tokens = training_tokens(tokenizer, chat_format, example(turns), 4096, "truncate", "all")
    assert isinstance(tokens, TrainingTokens)
    return tokens


def rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], **options: bool) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **options)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> dict[str, PreTrainedTokenizerBase]:
    return {name: load_tokenizer(shared_data / "tokenizers" / folder) for name, folder in REAL.items()}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("chat_format", FAMILIES)
def test_the_saved_template_gives_the_tokens_of_training(
    real: dict[str, PreTrainedTokenizerBase], name: str, chat_format: str, tmp_path: Path
) -> None:
    real[name].chat_template = chat_template(chat_format, with_bos=adds_bos(real[name]))
    real[name].save_pretrained(tmp_path)
    # others than codetune load it as well
    saved = AutoTokenizer.from_pretrained(tmp_path) if chat_format == "llama3" else load_tokenizer(tmp_path)
    for turns in CONVERSATIONS.values():
        tokens = trained(real[name], chat_format, turns)
        assert rendered(saved, turns) == list(tokens.ids)
        prompt = rendered(saved, turns[:-1], add_generation_prompt=True)
        assert list(tokens.ids[: len(prompt)]) == prompt


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("chat_format", FAMILIES)
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_loss_is_on_every_answer_and_its_eos_and_nothing_else(
    real: dict[str, PreTrainedTokenizerBase], name: str, chat_format: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = real[name]
    tokens = trained(tokenizer, chat_format, turns)
    runs: list[list[int]] = []
    for index, (token, learned) in enumerate(zip(tokens.ids, tokens.learned, strict=True)):
        if learned and not (index and tokens.learned[index - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token)
    answers = [content for role, content in turns if role == "assistant"]
    assert [run[-1] for run in runs] == [tokenizer.eos_token_id] * len(answers)
    assert [tokenizer.decode(run[:-1]).strip() for run in runs] == [answer.strip() for answer in answers]


@pytest.mark.parametrize("name", REAL)
def test_bos_stands_first_once_where_the_configuration_asks_for_one(
    real: dict[str, PreTrainedTokenizerBase], name: str
) -> None:
    tokens = trained(real[name], "deepseek", CONVERSATIONS["two turns"])
    assert tokens.ids[0] == real[name].bos_token_id
    assert tokens.ids.count(real[name].bos_token_id) == 1
    again = trained(real[name], "codellama", CONVERSATIONS["two turns"])
    assert again.ids.count(real[name].bos_token_id) == 2


def test_a_tokenizer_that_adds_no_bos_gets_none() -> None:
    tokenizer = byte_tokenizer(bos=True)
    assert tokenizer.bos_token_id not in trained(tokenizer, "codellama", CONVERSATIONS["two turns"]).ids


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_with_deepseeks_own_template_the_loss_is_on_answers_up_to_their_eos(
    turns: list[tuple[str, str]], shared_data: Path
) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / REAL["deepseek"])
    tokens = trained(tokenizer, "tokenizer", turns)
    assert list(tokens.ids) == rendered(tokenizer, turns)
    assert tokens.ids.count(tokenizer.bos_token_id) == 1
    learned = [token for token, is_learned in zip(tokens.ids, tokens.learned, strict=True) if is_learned]
    answers = [content for role, content in turns if role == "assistant"]
    # that template writes a newline between the answer and its EOS
    assert tokenizer.decode(learned).split("<|EOT|>")[:-1] == [answer + "\n" for answer in answers]


@pytest.fixture(scope="module")
def deepseek(shared_data: Path) -> PreTrainedTokenizerBase:
    """With the template that its makers gave it."""
    return load_tokenizer(shared_data / "tokenizers" / REAL["deepseek"])


@pytest.mark.parametrize("chat_format", ["tokenizer", *FAMILIES])
def test_of_a_conversation_the_last_answer_alone_is_learned_where_the_project_says_so(
    deepseek: PreTrainedTokenizerBase, chat_format: ChatFormat
) -> None:
    turns = CONVERSATIONS["two turns"]
    every = trained(deepseek, chat_format, turns)
    last = training_tokens(deepseek, chat_format, example(turns), 4096, "truncate", "last")
    assert isinstance(last, TrainingTokens)
    begin = every.learned.index(False, every.learned.index(True))  # behind the first answer
    assert last.learned == (*[False] * begin, *every.learned[begin:])
    assert (last.ids, sum(last.learned) > 1) == (every.ids, True)


@pytest.mark.parametrize(
    ("chat_format", "template"),
    [("deepseek", ""), ("tokenizer", chat_template("deepseek", with_bos=False)), ("tokenizer", BLOCKS)],
    ids=["family", "prefixes", "blocks"],
)
def test_an_answer_with_the_weight_0_is_context(chat_format: ChatFormat, template: str) -> None:
    tokenizer, (question, answer) = byte_tokenizer(bos=False), (Message("user", "hi"), Message("assistant", "yo"))
    tokenizer.chat_template = template
    answers = [replace(answer, learned=False), answer]
    row = Example("0" * 16, tuple(turn for one in answers for turn in (question, one)), "")
    tokens = training_tokens(tokenizer, chat_format, row, 512, "truncate", "all")
    assert isinstance(tokens, TrainingTokens)
    learned = [token for token, is_learned in zip(tokens.ids, tokens.learned, strict=True) if is_learned]
    assert tokenizer.decode(learned) == "yo</s>"
    weightless = replace(row, messages=(question, answer, question, answer))
    same = training_tokens(tokenizer, chat_format, weightless, 512, "truncate", "all")
    assert isinstance(same, TrainingTokens)
    assert (same.ids, sum(same.learned)) == (tokens.ids, 2 * sum(tokens.learned))


def test_a_template_that_never_closes_an_answer_is_an_error() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(ModelError, match="closes an answer with no special token"):
        trained(tokenizer, "tokenizer", CONVERSATIONS["one turn"])


def test_a_template_that_refuses_system_texts_is_a_counted_reason() -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    refused = training_tokens(tokenizer, "tokenizer", example(CONVERSATIONS["system"]), 99, "truncate", "all")
    assert refused == DroppedSample(Refusal("0" * 16, "the tokenizer's chat template refuses it: no system", "x:1"), 0)


def test_a_truncated_answer_gets_no_eos_and_its_lost_tokens_are_counted() -> None:
    tokenizer = byte_tokenizer(bos=False)
    whole = trained(tokenizer, "deepseek", CONVERSATIONS["one turn"])
    cut = training_tokens(
        tokenizer, "deepseek", example(CONVERSATIONS["one turn"]), len(whole.ids) - 1, "truncate", "all"
    )
    assert isinstance(cut, TrainingTokens)
    assert (cut.ids, cut.truncated, cut.lost_tokens) == (whole.ids[:-1], True, 1)
    assert tokenizer.eos_token_id not in cut.ids
    assert (whole.truncated, whole.lost_tokens) == (False, 0)


def test_a_row_that_is_too_long_is_dropped_where_the_project_says_so() -> None:
    tokenizer = byte_tokenizer(bos=False)
    refused = training_tokens(tokenizer, "deepseek", example(CONVERSATIONS["one turn"]), 30, "drop", "all")
    whole = trained(tokenizer, "deepseek", CONVERSATIONS["one turn"])
    assert refused == DroppedSample(Refusal("0" * 16, "longer than 30 tokens", "x:1"), len(whole.ids))


def test_a_prompt_that_fills_the_length_is_refused() -> None:
    tokenizer = byte_tokenizer(bos=False)
    refused = training_tokens(tokenizer, "deepseek", example(CONVERSATIONS["one turn"]), 5, "truncate", "all")
    whole = trained(tokenizer, "deepseek", CONVERSATIONS["one turn"])
    assert refused == DroppedSample(Refusal("0" * 16, "no answer token within 5 tokens", "x:1"), len(whole.ids))


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.booleans(), TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_any_text_is_trained_as_it_is_rendered(
    chat_format: str, with_system: bool, system: str, pairs: list[tuple[str, str]]
) -> None:
    turns = [("system", system)] if with_system else []
    for question, answer in pairs:
        turns += [("user", question), ("assistant", answer)]
    tokens = trained(TOKENIZER, chat_format, turns)
    TOKENIZER.chat_template = chat_template(chat_format, with_bos=False)
    assert rendered(TOKENIZER, turns) == list(tokens.ids)
    closed = [TOKENIZER.eos_token_id == token for token in tokens.ids]
    assert sum(closed) == len(pairs)
    assert all(learned for learned, eos in zip(tokens.learned, closed, strict=True) if eos)


TOKENIZER = byte_tokenizer(bos=False)
