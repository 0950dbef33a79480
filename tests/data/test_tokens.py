"""The boundary between prompt and answer, and what is truncated, in scoring."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from codetune.data.tokens import ScoringTokens, Span, scoring_tokens
from codetune.model.load import load_tokenizer
from codetune.records import Example, Message, Refusal
from tests.model.builders import byte_tokenizer

REAL = ("deepseek-coder-6.7b-instruct", "codellama")


def example(answer: str) -> Example:
    return Example("0" * 16, (Message("user", "x"), Message("assistant", answer)), "a:1")


def tokens_of(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, max_length: int) -> ScoringTokens | Refusal:
    (tokens,) = scoring_tokens(tokenizer, [prompt], [example(answer)], max_length)
    return tokens


def split(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, max_length: int = 2048) -> ScoringTokens:
    tokens = tokens_of(tokenizer, prompt, answer, max_length)
    assert isinstance(tokens, ScoringTokens)
    return tokens


def test_the_answer_is_predicted_in_two_contexts_from_the_same_tokens() -> None:
    tokens = ScoringTokens(context=(1, 7, 8), answer=(5, 6), bos=1, truncated=False)
    assert tokens.conditional == Span((1, 7, 8, 5, 6), 3)
    assert tokens.unconditional == Span((1, 5, 6), 1)
    assert tokens.scored == 2


def test_without_a_bos_both_passes_leave_out_the_first_answer_token() -> None:
    tokens = ScoringTokens(context=(7, 8), answer=(5, 6), bos=None, truncated=False)
    assert tokens.conditional == Span((7, 8, 5, 6), 3)
    assert tokens.unconditional == Span((5, 6), 1)
    assert tokens.scored == 1


@pytest.mark.parametrize("name", REAL)
def test_real_rows_are_tokenized_once_and_cut_at_the_answers_first_character(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / name
    tokenizer, reference = load_tokenizer(path), Tokenizer.from_file(str(path / "tokenizer.json"))
    rows = json.loads((shared_data / "instruct" / "evol-round1.json").read_text(encoding="utf-8"))[:200]
    for row in rows:
        prompt, answer = f"Question:\n{row['instruction']}\n\nAnswer:\n", row["output"]
        whole = reference.encode(prompt + answer, add_special_tokens=False)
        tokens = split(tokenizer, prompt, answer, 10**6)
        assert tokens.bos == tokenizer.bos_token_id
        assert (*tokens.context, *tokens.answer) == (tokens.bos, *whole.ids)
        first_answer = len(tokens.context) - 1
        assert whole.offsets[first_answer][0] == len(prompt)
        assert whole.offsets[first_answer - 1][1] == len(prompt)


def test_codellamas_answer_is_the_one_that_follows_the_prompt(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "codellama")
    assert tokenizer.convert_ids_to_tokens(split(tokenizer, "Answer:\n", "def f").answer) == ["def", "▁f"]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(("prompt", "answer"), [("Answer: ", "def f"), ("Answer:\n\n ", "   x = 1"), ("Ans", "wer")])
def test_where_a_token_spans_the_boundary_both_sides_are_tokenized_apart(
    shared_data: Path, name: str, prompt: str, answer: str
) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)

    def apart(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)

    tokens = split(tokenizer, prompt, answer)
    joint = apart(prompt + answer)
    assert (*tokens.context[1:], *tokens.answer) != joint, "no token spans this boundary"
    assert (tokens.context[1:], tokens.answer) == (apart(prompt), apart(answer))


@settings(max_examples=300, deadline=None)
@given(prompt=st.text("ab \n:é日😀", max_size=8), answer=st.text("ab \n:é日😀", min_size=1, max_size=8))
def test_trimmed_offsets_change_no_boundary(prompt: str, answer: str) -> None:
    plain, trimmed = (_trained(trim) for trim in (False, True))
    assert tokens_of(plain, prompt, answer, 99) == tokens_of(trimmed, prompt, answer, 99)
    tokens = split(plain, prompt, answer, 99)
    assert plain.decode(tokens.answer) == answer
    assert plain.decode(tokens.context[1:]) == prompt


_TOKENIZERS: dict[bool, PreTrainedTokenizerBase] = {}


def _trained(trim: bool) -> PreTrainedTokenizerBase:
    if trim not in _TOKENIZERS:
        texts = ["".join(letters) for letters in itertools.product("ab \n:é日😀", repeat=3)]
        _TOKENIZERS[trim] = byte_tokenizer(bos=True, trim_offsets=trim, texts=texts)
    return _TOKENIZERS[trim]


def test_a_long_answer_is_cut_alike_in_both_passes() -> None:
    tokenizer = byte_tokenizer(bos=True)
    whole = split(tokenizer, "Answer:\n", "def add(a, b):")
    assert not whole.truncated
    limit = len(whole.context) + 3
    cut = split(tokenizer, "Answer:\n", "def add(a, b):", limit)
    assert cut.truncated
    assert cut.answer == whole.answer[:3]
    assert len(cut.conditional.tokens) == limit
    assert len(cut.unconditional.tokens) == 1 + 3


@pytest.mark.parametrize(("bos", "room"), [(True, 1), (False, 2)])
def test_a_prompt_that_fills_the_window_is_refused(bos: bool, room: int) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    length = len(split(tokenizer, "Answer:\n", "def add(a, b):").context)
    for window in range(2, length + room):
        refusal = tokens_of(tokenizer, "Answer:\n", "def add(a, b):", window)
        assert refusal == Refusal("0" * 16, f"prompt leaves no room for the answer in {window} tokens", "a:1")
    assert split(tokenizer, "Answer:\n", "def add(a, b):", length + room).scored == 1


def test_an_answer_of_one_token_is_refused_where_there_is_no_bos() -> None:
    refusal = tokens_of(byte_tokenizer(bos=False), "Answer:\n", "x", 99)
    assert refusal == Refusal("0" * 16, "answer has no token that follows another", "a:1")
    assert split(byte_tokenizer(bos=True), "Answer:\n", "x").scored == 1


def test_rows_tokenized_together_are_as_they_are_alone() -> None:
    tokenizer = byte_tokenizer(bos=True)
    rows = [("Answer:\n", "def add(a, b):"), ("Add ", " two"), ("x" * 300, "y"), ("", "  z")]
    together = scoring_tokens(tokenizer, [prompt for prompt, _ in rows], [example(answer) for _, answer in rows], 100)
    assert together == [tokens_of(tokenizer, prompt, answer, 100) for prompt, answer in rows]
