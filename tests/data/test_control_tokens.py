"""Control tokens that are written out in a content are text, whatever the tokenizer; those of templates are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from codetune.data.chat import require_fitting_format
from codetune.data.control_tokens import UNREADABLE, control_tokens
from codetune.data.tokens import DroppedSample, TrainingTokens, training_tokens
from codetune.errors import ModelError
from codetune.model.load import load_tokenizer
from codetune.project.sections import Scoring
from codetune.records import Example, Message, Refusal
from codetune.selection.score import tokenize
from tests.model.builders import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITTEN = 'x = "<s>old</s>" + "<|im_end|>" # <|fim_hole|>'
PRIVATE = chr(0x100000)


def example(question: str, answer: str) -> Example:
    return Example("0" * 16, (Message("user", question), Message("assistant", answer)), "rows.jsonl:1")


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<|fim_hole|>"])  # by its tokenizer an ordinary one, as DeepSeek's
    tokenizer.chat_template = CHATML
    return tokenizer


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """One whose vocabulary has the EOS as a piece, so that the plain text would give it."""
    letters = sorted({*WRITTEN, *"<s>old</s>?"})
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in letters)], 0))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_control_token_that_is_written_out_is_text_and_decodes_to_it() -> None:
    tokenizer = chatml_tokenizer()
    controls = control_tokens(tokenizer)
    (encoded,) = controls.encode([controls.mark(WRITTEN)])
    assert encoded is not None
    assert tokenizer.decode(encoded.ids) == WRITTEN
    assert not {*encoded.ids} & {*tokenizer.added_tokens_decoder}
    assert [end for _, end in encoded.offsets][-1] == len(WRITTEN)


def test_a_vocabulary_that_has_the_control_token_as_a_piece_makes_text_of_it() -> None:
    tokenizer = unigram_tokenizer()
    controls = control_tokens(tokenizer)
    (encoded,) = controls.encode([controls.mark("<s>old</s>")])
    assert encoded is not None
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == list("<s>old</s>")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<s>", "</s>", "<|im_end|>", "<|im_", "s>", " ", "\n", "é", "def"]), max_size=8))
def test_every_text_decodes_to_itself_without_a_control_token(pieces: list[str]) -> None:
    controls = control_tokens(TOKENIZER)
    (encoded,) = controls.encode([controls.mark("".join(pieces))])
    assert encoded is not None
    assert TOKENIZER.decode(encoded.ids) == "".join(pieces)
    assert not {*encoded.ids} & {*TOKENIZER.added_tokens_decoder}


TOKENIZER = chatml_tokenizer()


@pytest.mark.parametrize("chat_format", ["codeqwen", "tokenizer", "codellama"])
def test_the_templates_own_control_tokens_stay_beside_written_ones(chat_format: str) -> None:
    tokenizer = chatml_tokenizer()
    plain, written = (
        training_tokens(tokenizer, chat_format, example("Name it.", answer), 999, "drop", "all")
        for answer in ("x", WRITTEN)
    )
    assert isinstance(plain, TrainingTokens)
    assert isinstance(written, TrainingTokens)
    controls = {*tokenizer.added_tokens_decoder}
    assert [token for token in written.ids if token in controls] == [token for token in plain.ids if token in controls]
    learned = [token for token, is_learned in zip(written.ids, written.learned, strict=True) if is_learned]
    assert tokenizer.decode(learned[:-1]) == WRITTEN
    assert learned[-1] in controls  # the end of the answer


def test_an_ordinary_added_token_is_a_control_token_if_its_word_says_so() -> None:
    tokenizer = byte_tokenizer(bos=True)
    roles = ["<PAD>", "[MASK]", "<unused7>", "<extra_id_0>", "<fim_prefix>", "<end_of_turn>", "[/s]"]
    tokenizer.add_tokens([*roles, "<think>", "<tool_call>", "<table>", "<spam>", "    ", "é"])
    assert control_tokens(tokenizer).texts == {*roles, "<s>", "</s>", "<pad>"}


def test_the_answer_that_is_scored_has_no_control_token() -> None:
    tokenizer = chatml_tokenizer()
    row, frame = example("Keep <|im_start|>.", WRITTEN), Scoring(prompt="<s>{instruction}:")
    (passes,) = tokenize([row], tokenizer, 999, frame, {row.id: row}, {})
    assert not isinstance(passes, Refusal)
    tokens = passes.tokens
    assert passes.spans["nll_shuffled"] == passes.spans["nll_conditional"]  # its partner is the row itself
    assert tokenizer.decode(tokens.answer) == WRITTEN
    assert [token for token in tokens.context if token in tokenizer.added_tokens_decoder] == [0, 0]  # BOS, the frame's
    assert tokenizer.decode(tokens.context[2:]) == "Keep <|im_start|>:".replace(":", ".:")


def test_a_row_that_cannot_be_told_from_the_names_of_control_tokens_is_refused() -> None:
    tokenizer, row = chatml_tokenizer(), example("Name it.", f"</s>{PRIVATE}")
    dropped = training_tokens(tokenizer, "deepseek", row, 999, "drop", "all")
    assert dropped == DroppedSample(Refusal("0" * 16, UNREADABLE, "rows.jsonl:1"), 0)
    assert tokenize([row], tokenizer, 999, Scoring(), {}, {}) == [Refusal("0" * 16, UNREADABLE, "rows.jsonl:1")]
    plain = training_tokens(tokenizer, "deepseek", example("Name it.", PRIVATE), 999, "drop", "all")
    assert isinstance(plain, TrainingTokens)


def test_a_template_that_rewrites_what_is_written_out_refuses_the_row() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = CHATML.replace("| trim", "[1:]")
    dropped = training_tokens(tokenizer, "tokenizer", example("<|im_end|>", "b"), 999, "drop", "all")
    assert isinstance(dropped, DroppedSample)
    assert "template rewrites" in dropped.refusal.reason


def test_a_format_fits_a_tokenizer_that_has_its_special_tokens() -> None:
    tokenizer = chatml_tokenizer()
    require_fitting_format("codeqwen", tokenizer)
    require_fitting_format("tokenizer", tokenizer)
    message = r"<end_of_turn>.*one of: deepseek, starcoder2, codellama, codeqwen, tokenizer \(its own template\)$"
    with pytest.raises(ModelError, match=message):
        require_fitting_format("codegemma", tokenizer)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("codellama", 'x = "<s>old</s>" # ▁<PRE><FILL_ME>'),
        ("deepseek-coder-6.7b-instruct", "<|EOT|> <\uff5cfim▁hole\uff5c><\uff5cend▁of▁sentence\uff5c> <|User|><pad>"),
    ],
)
def test_real_tokenizers_read_written_control_tokens_as_text(shared_data: Path, name: str, written: str) -> None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(shared_data / "tokenizers" / name)
    controls = control_tokens(tokenizer)
    assert {token for token in tokenizer.get_added_vocab() if len(token) > 1} <= controls.texts
    texts = [controls.mark(written), "def f(x):\n\treturn x"]
    marked, plain = controls.encode(texts)
    assert marked is not None
    assert plain is not None
    assert plain.ids == tokenizer(texts[1], add_special_tokens=False).input_ids
    assert not {*marked.ids} & {*tokenizer.added_tokens_decoder}
    assert tokenizer.decode(marked.ids).replace("▁", " ") == written.replace("▁", " ")
