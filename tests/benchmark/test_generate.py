from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from codetune.benchmark.generate import generate
from codetune.project import Generation
from codetune.records import Completion, Solution
from tests.benchmark.tasks import problem


class Echo:
    """Completes with the length of the prompt and what it was told."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def complete(
        self, prompts: Sequence[Sequence[int]], stops: Sequence[Sequence[str]], max_new_tokens: int
    ) -> list[str]:
        self.batches.append([len(prompt) for prompt in prompts])
        return [f"{len(prompt)} {max_new_tokens} {stop[0]!r}" for prompt, stop in zip(prompts, stops, strict=True)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ messages[0]['content'] }}")


TASKS = [problem(task_id=f"Own/{length}", prompt="a" * length) for length in (3, 9, 1, 7, 5)]


def test_batches_are_of_about_equal_length_and_longest_first(tokenizer: PreTrainedTokenizerFast) -> None:
    echo = Echo()
    settings = Generation(prompt="completion", batch_size=2, max_new_tokens=8)
    found = list(generate(TASKS, tokenizer, echo, settings))
    assert echo.batches == [[9, 7], [5, 3], [1]]
    assert found[0] == Completion("Own/9", "9 8 '\\nif __name__'")
    assert sorted(record.task_id for record in found) == sorted(task.task_id for task in TASKS)


def test_completions_are_yielded_before_the_next_batch_is_begun(tokenizer: PreTrainedTokenizerFast) -> None:
    echo = Echo()
    next(generate(TASKS, tokenizer, echo, Generation(prompt="completion", batch_size=2)))
    assert len(echo.batches) == 1


def test_a_chat_answer_stands_on_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    [found] = generate(TASKS[:1], tokenizer, Echo(), Generation(prompt="chat", max_new_tokens=8))
    assert isinstance(found, Solution)
    assert found.solution.endswith(" 8 '\\n```'")
