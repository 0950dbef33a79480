"""The chat format of a model is known by its files, or is an error that lists the formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from codetune.data.chat import FAMILIES
from codetune.errors import ModelError
from codetune.model.chat_format import find_chat_format

CHATML, DEEPSEEK = ("<|im_start|>", "<|im_end|>"), ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<|EOT|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.mark.parametrize(
    ("found", "tokens", "architecture", "tokenizer_class"),
    [
        ("codeqwen", CHATML, "qwen2", "Qwen2Tokenizer"),
        ("codegemma", ("<start_of_turn>", "<end_of_turn>", "<bos>"), "gemma", "GemmaTokenizer"),
        ("llama3", LLAMA3, "llama", "PreTrainedTokenizerFast"),
        ("deepseek", DEEPSEEK, "llama", "LlamaTokenizerFast"),
        ("starcoder2", ("<|endoftext|>",), "starcoder2", "GPT2Tokenizer"),
        ("codellama", ("<s>",), "llama", "CodeLlamaTokenizerFast"),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_family_is_known_by_its_tokens_its_architecture_or_its_tokenizer(
    found: str, tokens: Sequence[str], architecture: str, tokenizer_class: str, file: str, tmp_path: Path
) -> None:
    write_model(tmp_path, tokens, architecture, tokenizer_class, file)
    assert find_chat_format(tmp_path) == found


def test_every_family_has_signs() -> None:
    assert all(family.signs or family.special_tokens for family in FAMILIES.values())


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_model_of_no_family_with_a_template_of_its_own_is_written_by_it(file: str, tmp_path: Path) -> None:
    write_model(tmp_path, ["</s>"], "llama", "LlamaTokenizer", template=file)
    assert find_chat_format(tmp_path) == "tokenizer"


@pytest.mark.parametrize(
    ("tokens", "template", "fault", "fitting"),
    [
        (["</s>"], "", "the model is of no known family", "deepseek starcoder2 codellama"),
        ([*CHATML, *LLAMA3], "", "codeqwen and llama3 could be it", "deepseek starcoder2 codellama codeqwen llama3"),
        (
            [*CHATML, *LLAMA3],
            "chat_template.jinja",
            "codeqwen and llama3 could be it",
            "deepseek starcoder2 codellama codeqwen llama3 tokenizer",
        ),
    ],
)
def test_a_model_that_shows_no_format_or_several_is_an_error_that_lists_those_that_fit(
    tokens: Sequence[str], template: str, fault: str, fitting: str, tmp_path: Path
) -> None:
    write_model(tmp_path, tokens, "llama", "LlamaTokenizer", template=template)
    with pytest.raises(ModelError, match=fault) as error:
        find_chat_format(tmp_path)
    assert {*str(error.value).partition("learn: ")[2].split(", ")} == {*fitting.split()}


def write_model(
    directory: Path,
    tokens: Sequence[str],
    architecture: str,
    tokenizer_class: str,
    tokens_in: str = "tokenizer.json",
    template: str = "",
) -> None:
    listed = [{"content": token} for token in tokens]
    settings: dict[str, object] = {"tokenizer_class": tokenizer_class}
    if tokens_in == "tokenizer_config.json":
        settings["added_tokens_decoder"] = {str(number): token for number, token in enumerate(listed)}
    else:
        (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}), encoding="utf-8")
    if template == "tokenizer_config.json":
        settings["chat_template"] = "{{ messages }}"
    elif template:
        (directory / template).write_text("{{ messages }}", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps({"model_type": architecture}), encoding="utf-8")
