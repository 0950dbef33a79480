from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from codetune.benchmark.benchmarks import instruction
from codetune.benchmark.generate import GeneratedSample, chat_text, generate, make_prompt
from codetune.data import own_template
from codetune.errors import ModelError
from codetune.model.decoding import GeneratedText, GenerationRequest
from codetune.project.sections import Generation
from codetune.records import Completion, Solution
from tests.benchmark.tasks import problem


class Echo:
    """Completes with the length of the prompt, the stream and the first stop string; last request first."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    def refusal(self, request: GenerationRequest) -> str:
        return "too long" if len(request.prompt) == 10 else ""

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        self.asked = list(requests)
        for number, request in reversed(list(enumerate(requests))):
            text = f"{len(request.prompt)} {request.stream} {request.stops[0]!r}"
            yield number, GeneratedText(text, len(request.prompt), truncated=len(request.prompt) == 9)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ messages[0]['content'] }}")


TASKS = [problem(task_id=f"Own/{length}", prompt="a" * length) for length in (3, 9, 1, 7, 5)]


COMPLETION = Generation(prompt="completion")


def test_the_work_list_is_longest_first_whatever_its_order(tokenizer: PreTrainedTokenizerFast) -> None:
    orders = []
    for tasks in (TASKS, TASKS[::-1]):
        echo = Echo()
        work = [(task, number) for number in range(2) for task in tasks]
        found = list(generate(work, tokenizer, echo, COMPLETION, 42))
        orders.append([(len(request.prompt), request.stream) for request in echo.asked])
        assert sorted((item.sample.task_id, item.sample.sample) for item in found) == sorted(
            (task.task_id, number) for task, number in work
        )
    assert orders[0] == orders[1]
    assert orders[0][:3] == [(9, "42/Own/9/0"), (9, "42/Own/9/1"), (7, "42/Own/7/0")]


def test_each_text_goes_to_the_task_and_sample_that_asked_for_it(tokenizer: PreTrainedTokenizerFast) -> None:
    found = list(generate([(TASKS[0], 4), (TASKS[1], 2)], tokenizer, Echo(), COMPLETION, 7))
    assert found[0].sample == Completion("Own/3", "3 7/Own/3/4 '\\nif __name__'", 4)
    assert found[1] == GeneratedSample(Completion("Own/9", "9 7/Own/9/2 '\\nif __name__'", 2), 9, truncated=True)


def test_a_chat_answer_stands_on_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    [found] = generate([(TASKS[0], 0)], tokenizer, Echo(), Generation(prompt="chat"), 42)
    assert isinstance(found.sample, Solution)
    assert found.sample.solution.endswith(" '\\n```'")


def test_a_prompt_that_the_model_cannot_take_fails_its_task_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    work = [(problem(task_id=f"Own/{length}", prompt="a" * length), 0) for length in (10, 3)]
    refused, made = generate(work, tokenizer, Echo(), COMPLETION, 42)
    assert refused == GeneratedSample(Solution("Own/10", "", 0), 0, False, "too long")
    assert made.sample.task_id == "Own/3"
    assert not made.refused


def test_a_control_token_that_a_task_writes_out_is_text(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    made = make_prompt(problem(prompt="s = '<s>'"), bos_tokenizer, "completion")
    assert made.tokens == (0, *map(ord, "s = '<s>'"))
    made = make_prompt(problem(prompt="s = '<s>'"), bos_tokenizer, "chat")
    assert made.tokens.count(0) == 1
    assert bytes(made.tokens[1:]).decode().count("<s>") == 1


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a BOS before every text, as CodeLlama's does."""
    vocabulary = {chr(code): code for code in range(1, 128)} | {"<s>": 0}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=TEMPLATE)


def test_a_raw_prompt_has_one_bos_before_it_and_one_line_break_behind(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    made = make_prompt(problem(prompt="\n\ndef double(x):\n  '''Twice.'''\n"), bos_tokenizer, "completion")
    assert bos_tokenizer.decode(made.tokens) == "<s>def double(x):\n  '''Twice.'''\n"
    made = make_prompt(problem(prompt="def double(x):  "), bos_tokenizer, "completion")
    assert bos_tokenizer.decode(made.tokens) == "<s>def double(x):"


def test_a_chat_prompt_has_one_bos_and_opens_the_answers_fence(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    made = make_prompt(problem(), bos_tokenizer, "chat")
    text: Any = bos_tokenizer.decode(made.tokens)
    assert text == f"<s><user>{instruction(problem())}<assistant>```python\n"
    assert "`double`" in text
    assert problem().prompt.strip() in text
    assert made.stops == ("\n```",)


def test_a_model_that_writes_channels_answers_in_the_final_one(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    bos_tokenizer.chat_template = "{{ messages[0]['content'] }}<|start|>assistant"
    assert chat_text(problem(), bos_tokenizer).endswith("<|start|>assistant<|channel|>final<|message|>```python\n")


def test_a_tokenizer_without_a_template_cannot_chat(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    bos_tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*--base"):
        make_prompt(problem(), bos_tokenizer, "chat")


def test_a_template_that_refuses_is_named(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    bos_tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ModelError, match=r"refuses a single user turn .system first"):
        make_prompt(problem(), bos_tokenizer, "chat")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages", "unexpected end of template"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
    ids=["division", "types", "recursion", "syntax", "escape"],
)
def test_a_template_that_fails_is_named_with_its_reason(
    bos_tokenizer: PreTrainedTokenizerFast, template: str, reason: str
) -> None:
    bos_tokenizer.chat_template = template
    with pytest.raises(ModelError, match=rf"(?s)refuses a single user turn .*{reason}"):
        make_prompt(problem(), bos_tokenizer, "chat")


def test_a_template_that_takes_memory_without_end_is_refused(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    bos_tokenizer.chat_template = "{{ 'a' * 99999999999 }}"
    with pytest.raises(ModelError, match="MemoryError"):
        make_prompt(problem(), bos_tokenizer, "chat")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_template_that_does_not_end_is_refused(
    bos_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_template, "TEMPLATE_SECONDS", 0.05)
    loop = "{% for a in range(9**5) %}"
    bos_tokenizer.chat_template = f"{loop * 3}{'{% endfor %}' * 3}"
    with pytest.raises(ModelError, match="chat template has not finished"):
        make_prompt(problem(), bos_tokenizer, "chat")
    bos_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert make_prompt(problem(), bos_tokenizer, "chat").tokens
