from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from codetune.benchmark.generate import Generated, generate
from codetune.model.decoding import GenerationRequest, Written
from codetune.project.sections import Generation
from codetune.records import Completion, Solution
from tests.benchmark.tasks import problem


class Echo:
    """Completes with the length of the prompt and what it was told, last request first."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Written]]:
        self.asked = list(requests)
        for number, request in reversed(list(enumerate(requests))):
            text = f"{len(request.prompt)} {request.stream} {request.stops[0]!r}"
            yield number, Written(text, len(request.prompt), truncated=len(request.prompt) == 9)


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
    assert found[1] == Generated(Completion("Own/9", "9 7/Own/9/2 '\\nif __name__'", 2), 9, truncated=True)


def test_a_chat_answer_stands_on_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    [found] = generate([(TASKS[0], 0)], tokenizer, Echo(), Generation(prompt="chat"), 42)
    assert isinstance(found.sample, Solution)
    assert found.sample.solution.endswith(" '\\n```'")
