from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from codetune.benchmark.problems import read_problems
from codetune.benchmark.prompt import completion_stops, instruction, make_prompt
from codetune.errors import ModelError
from tests.benchmark.tasks import problem

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a BOS before every text, as CodeLlama's does."""
    vocabulary = {chr(code): code for code in range(1, 128)} | {"<s>": 0}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=TEMPLATE)


def test_a_raw_prompt_has_one_bos_before_it_and_one_line_break_behind(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make_prompt(problem(prompt="\n\ndef double(x):\n  '''Twice.'''\n"), tokenizer, "completion")
    assert tokenizer.decode(made.tokens) == "<s>def double(x):\n  '''Twice.'''\n"
    made = make_prompt(problem(prompt="def double(x):  "), tokenizer, "completion")
    assert tokenizer.decode(made.tokens) == "<s>def double(x):"


def test_a_chat_prompt_has_one_bos_and_opens_the_answers_fence(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make_prompt(problem(), tokenizer, "chat")
    text: Any = tokenizer.decode(made.tokens)
    assert text == f"<s><user>{instruction(problem())}<assistant>```python\n"
    assert "`double`" in text
    assert problem().prompt.strip() in text
    assert made.stops == ("\n```",)


def test_a_tokenizer_without_a_template_cannot_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*--base"):
        make_prompt(problem(), tokenizer, "chat")


def test_a_template_that_refuses_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ModelError, match=r"refuses a single user turn .system first"):
        make_prompt(problem(), tokenizer, "chat")


def test_stops_follow_whether_the_prompt_has_opened_the_function(shared_data: Path) -> None:
    files = ("HumanEvalPlus-v0.1.10.jsonl.gz", "MbppPlus-v0.2.0.jsonl.gz")
    human, mbpp = (read_problems(str(shared_data / "benchmarks" / file), None) for file in files)
    assert all("\ndef " in completion_stops(task) and '\n"""' not in completion_stops(task) for task in human)
    assert all("\ndef " not in completion_stops(task) and '\n"""' in completion_stops(task) for task in mbpp)
