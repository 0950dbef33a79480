"""Continuous batching on a CPU with a small paged cache."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig

from codetune.errors import CodetuneError
from codetune.model.batch_generator import BatchGenerator
from codetune.model.continuous_batching import ContinuousGenerator, _fixed_attention
from codetune.model.decoding import GenerationRequest
from codetune.project.sections import Generation
from tests.model.builders import byte_tokenizer, tiny_model

SMALL_CACHE = {"num_blocks": 64, "max_batch_tokens": 256}
TOKENIZER = byte_tokenizer(bos=True)
SETTINGS = Generation(max_new_tokens=24)


def requests(count: int, *stops: str) -> list[GenerationRequest]:
    drawn = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 60, (count,), generator=drawn).tolist()
    return [
        GenerationRequest(tuple(torch.randint(3, 300, (length,), generator=drawn).tolist()), stops, "")
        for length in lengths
    ]


def continuous(model: Any) -> ContinuousGenerator:
    return ContinuousGenerator(model, TOKENIZER, [], SETTINGS, SMALL_CACHE)


@pytest.mark.parametrize("stops", [(), ("ab", "e", "\n")], ids=["ends alone", "stop strings"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_continuous_batching_generates_what_batches_do(architecture: str, stops: tuple[str, ...]) -> None:
    model, asked = tiny_model(architecture, len(TOKENIZER), hidden=32), requests(40, *stops)
    found = dict(continuous(model).complete(asked))
    expected = dict(BatchGenerator(model, TOKENIZER, [], SETTINGS).complete(asked))
    assert found == expected
    assert {written.truncated for written in found.values()} == ({True, False} if stops else {True})
    assert model.config._attn_implementation == "sdpa"  # as it was before


def test_an_eos_ends_a_completion_and_the_models_own_penalties_are_ignored() -> None:
    model: Any = tiny_model("llama", len(TOKENIZER), hidden=32)
    asked = requests(12)
    model.generation_config.repetition_penalty = 3.0
    plain = dict(BatchGenerator(model, TOKENIZER, [], SETTINGS).complete(asked))
    model.generation_config.eos_token_id = [1, *range(200, 260)]
    ended = dict(continuous(model).complete(asked))
    assert ended == dict(BatchGenerator(model, TOKENIZER, [], SETTINGS).complete(asked)) != plain
    assert not all(written.truncated for written in ended.values())


def test_logits_that_are_no_numbers_are_an_error_and_no_text() -> None:
    model = tiny_model("llama", len(TOKENIZER), hidden=32)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(torch.inf)
    asked = [GenerationRequest((5, 6), (), "42/HumanEval/5/0")]
    with pytest.raises(CodetuneError, match=r"token 1 of the completion 42/HumanEval/5/0 .*computed in float32"):
        list(continuous(model).complete(asked))


def test_a_closed_iterator_does_not_wait_for_the_other_requests() -> None:
    model: Any = tiny_model("llama", len(TOKENIZER), hidden=32)
    patient = ContinuousGenerator(model, TOKENIZER, [], Generation(max_new_tokens=100_000), SMALL_CACHE)
    before = threading.active_count()
    listening = patient.complete([*requests(3), GenerationRequest((5, 6), ("e", "a", " ", "o", "i", "n"), "")])
    next(listening)
    listening.close()
    assert threading.active_count() == before


class Dying(ContinuousGenerator):
    """Hands over what a manager has left when its thread is gone."""

    def received(self, output: Any) -> None:
        manager = SimpleNamespace(get_result=lambda timeout: output, is_running=lambda: False)
        list(self._receive(manager, dict(enumerate(requests(2)))))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "2 completions to go .it stopped."),
        (SimpleNamespace(request_id="1", error="CUDA out of memory"), "out of memory.*Lower generate.max_new_tokens"),
    ],
)
def test_a_manager_that_fails_is_an_error(output: Any, message: str) -> None:
    model = tiny_model("llama", len(TOKENIZER), hidden=32)
    with pytest.raises(CodetuneError, match=message):
        Dying(model, TOKENIZER, [], SETTINGS, SMALL_CACHE).received(output)


def test_the_options_that_are_set_exist() -> None:
    assert all(
        name in ContinuousBatchingConfig.__dataclass_fields__
        for name in ("return_logprobs", *SMALL_CACHE, *_fixed_attention())
    )
